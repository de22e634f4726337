"""The small model and the data sets that the package carries.

They are named like anything on the Hub, ``lit-align/tiny`` or ``lit-align/manners-pairs``, and are
found here before anyone asks the network.
"""

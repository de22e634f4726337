"""The shipped configurations; ``lit-align recipes`` lists them."""

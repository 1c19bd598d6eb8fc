"""The words every wing speaks: vector, steering, request."""

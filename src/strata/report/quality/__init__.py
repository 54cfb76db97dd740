"""What a model lost against another one: on a text token by token, at each layer, in tasks."""

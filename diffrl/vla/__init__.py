"""A compact vision-language-action model, and doors to the big ones."""

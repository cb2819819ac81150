"""A compact vision-language-action model: what it sees, learns and costs."""

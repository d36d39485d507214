"""Data and training of each model, for the command line. One folder a recipe, imported only when it is used."""

from .registry import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe"]

"""`lensdist evaluate`: score a trained model on a split, or on harder images."""

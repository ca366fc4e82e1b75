"""`lensdist evaluate`: a trained model scored on a split, or on harder images."""

"""Few-shot learning: heads fitted on the features of a frozen network."""

//! Sources of configuration and their translation to the model.

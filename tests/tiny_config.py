"""A config that trains in a second."""

TINY = {
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 2,
    "d_ff": 64,
    "max_seq_len": 16,
    "batch_size": 4,
    "max_steps": 6,
    "sampling_max_length": 12,
    "checkpoint_cadence": 3,
    "learning_rate": 3e-3,
    "seed": 7,
}

"""What Keras's callbacks count under private names.

A state keeps it, so that a training that is resumed saves and logs when the undisturbed one would;
no public way of Keras gives it back to a callback.
"""

# How many batches it is since the last time: of callbacks that save every so many.
SINCE_SAVED = ("_batches_seen_since_last_saving", "_last_batch_seen")
# The epoch in the names of their files.
EPOCH = "_current_epoch"
# The same of OrbaxCheckpoint, in batches.
BATCHES = "_total_batches_seen"
# Whether SwapEMAWeights has put the averages into the model.
AVERAGES_IN_MODEL = "_ema_weights_in_model"
# The positions of TensorBoard's curves, and the time that steps took.
CURVES = ("_global_test_batch", "_global_train_batch")
SECONDS = "_train_accumulated_time"

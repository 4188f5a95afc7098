//! Who provides routed experts and Engram rows to the model.

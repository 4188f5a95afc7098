//! CPU kernels over packed weights and caches, chosen at run time.

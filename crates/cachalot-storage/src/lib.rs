//! Positioned reads of weight files, behind one small trait.

//! deepseek-v41.md 3.10 (a): the token map.

use cachalot_text::engram::{checked_token_classes, token_classes};
use cachalot_text::{Family, TokenizerError};

use crate::fixtures::{nano, released, tiny};

#[test]
fn class_counts_are_those_of_the_checkpoints() {
    let map = checked_token_classes(released(Family::V41), 99_092).expect("the released count");
    assert_eq!(map.classes.len(), 129_280);
    assert_eq!(map.classes[..3], [0, 1, 2]);
    assert_eq!(token_classes(released(Family::V4)).count, 99_092);
    assert_eq!(token_classes(&tiny()).count, 617);
    assert_eq!(token_classes(&nano()).count, 3532);
}

#[test]
fn statistics_of_the_released_map() {
    let map = token_classes(released(Family::V41));
    let mut sizes = vec![0usize; map.count];
    let mut next = 0;
    for &class in &map.classes {
        // Classes are numbered in order of first appearance.
        assert!(class <= next);
        next = next.max(class + 1);
        sizes[class as usize] += 1;
    }
    assert_eq!(sizes.iter().filter(|&&size| size > 1).count(), 15_502);
    assert_eq!(sizes.iter().max(), Some(&163));
}

#[test]
fn a_wrong_tokenizer_is_refused() {
    let error = checked_token_classes(&tiny(), 99_092).expect_err("617 classes");
    assert_eq!(error, TokenizerError::EngramClasses { found: 617, expected: 99_092 });
    assert!(error.to_string().contains("engram_compressed_vocab_size"), "{error}");
}

//! The model that ships: the files of `models/nano`, part of the program.

use cachalot_storage::Embedded;

/// What people read when it is used.
pub const NOTE: &str = "no --model given: using the small test model that ships with cachalot (it knows a few facts and \
                        gets much wrong)";

/// Name of the model in place of a directory.
pub const LABEL: &str = "the model that ships (nano)";

/// Its files.
pub fn nano() -> Embedded {
    Embedded::new(LABEL)
        .with("config.json", &include_bytes!("../../../models/nano/config.json")[..])
        .with("tokenizer.json", &include_bytes!("../../../models/nano/tokenizer.json")[..])
        .with("model.safetensors.index.json", &include_bytes!("../../../models/nano/model.safetensors.index.json")[..])
        .with(
            "model-00001-of-00001.safetensors",
            &include_bytes!("../../../models/nano/model-00001-of-00001.safetensors")[..],
        )
}

//! Any bytes as a config: no panic, and an accepted config has a schedule that does not contradict itself.
#![no_main]

use cachalot_checkpoint::Architecture;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(architecture) = Architecture::from_config(bytes) else { return };
    let Some(config) = architecture.deepseek_v41() else { return };
    assert_eq!(config.layers.len(), config.num_hidden_layers);
    for (layer, plan) in config.layers.iter().enumerate() {
        assert_eq!(plan.kv_source.is_some(), plan.ratio > 0);
        assert_eq!(plan.index_source.is_some(), plan.ratio > 0);
        for source in plan.kv_source.into_iter().chain(plan.index_source) {
            assert!(source <= layer && config.layers[source].ratio == plan.ratio);
        }
    }
    let _ = config.entry_cache_bytes(1 << 20) + config.fixed_cache_bytes() + config.cache_read_bytes(1 << 20);
});

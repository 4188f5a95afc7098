//! Any bytes as a config: no panic, and an accepted config has a schedule that does not contradict itself.
#![no_main]

use cachalot_checkpoint::{Architecture, deepseek_v4, deepseek_v41};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(architecture) = Architecture::from_config(bytes) else { return };
    match (architecture.deepseek_v4(), architecture.deepseek_v41()) {
        (Some(config), _) => v4(config),
        (_, Some(config)) => v41(config),
        _ => {}
    }
    let fixed = architecture.fixed_cache_bytes() + architecture.table_row_bytes();
    let _ = fixed + architecture.entry_cache_bytes(1 << 20) + architecture.cache_read_bytes(1 << 20);
});

fn v4(config: &deepseek_v4::Config) {
    assert_eq!(config.layers.len(), config.num_hidden_layers);
    assert!(config.layers.iter().all(|plan| plan.ratio == plan.role.ratio()));
    assert!(config.qk_rope_head_dim < config.head_dim);
}

fn v41(config: &deepseek_v41::Config) {
    assert_eq!(config.layers.len(), config.num_hidden_layers);
    for (layer, plan) in config.layers.iter().enumerate() {
        assert_eq!(plan.kv_source.is_some(), plan.ratio > 0);
        assert_eq!(plan.index_source.is_some(), plan.ratio > 0);
        for source in plan.kv_source.into_iter().chain(plan.index_source) {
            assert!(source <= layer && config.layers[source].ratio == plan.ratio);
        }
    }
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let e = cachalot_engine::engine::Engine::open(
        std::sync::Arc::new(cachalot_storage::Directory::new(&a[1])),
        match a.get(5).map(|s| s.as_str()) {
            Some("vendor") => cachalot_model::Arithmetic::Vendor,
            Some("fast") => cachalot_model::Arithmetic::Fast,
            _ => cachalot_model::Arithmetic::Exact,
        },
        2,
    )
    .unwrap();
    let ids: Vec<u32> = serde_json::from_slice(&std::fs::read(&a[2]).unwrap()).unwrap();
    let r = cachalot_engine::forward::ForwardReport::run(
        e.model(),
        &ids,
        a.get(4).map(|m| m.parse().unwrap()).unwrap_or(cachalot_engine::forward::ForwardMode::Prefill),
        true,
        &mut |_| (),
    )
    .unwrap();
    r.write(std::path::Path::new(&a[3])).unwrap();
}

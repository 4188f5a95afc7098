//! The V4 fixture opens, and damaged copies of it say what is wrong.

use super::saved::fixture;
use cachalot_checkpoint::deepseek_v4::Draft;
use cachalot_checkpoint::family::Weights;
use cachalot_checkpoint::{Checkpoint, Dtype, Group, Inspection};
use cachalot_storage::{Fault, FaultyFiles, Plan};
use std::sync::Arc;

#[test]
fn the_fixture_opens() {
    let tiny = Checkpoint::open(fixture()).expect("the fixture");
    let config = tiny.architecture().deepseek_v4().expect("a V4 model");
    assert_eq!((config.build.dense, config.build.experts), (Weights::Fp8 { block: [128, 128] }, Weights::Fp4));
    assert_eq!(config.build.draft, Some(Draft::Mtp { copies: false }));
    assert!(tiny.abilities().draft && !tiny.abilities().vision);
    let total: u64 = tiny.tensors().iter().map(|tensor| tensor.bytes).sum();
    let inspection = Inspection::of(&tiny);
    assert_eq!((inspection.total.bytes, inspection.total.tensors), (total, tiny.tensor_count() as u64));
    assert_eq!(inspection.group(Group::HashTables).bytes, 3 * 768 * 2 * 8);
    assert_eq!(tiny.tensor("layers.2.ffn.gate.tid2eid").expect("there").dtype, Dtype::I64);
}

#[test]
fn tables_of_experts_are_checked_row_by_row() {
    let plan = Plan::new();
    let files = FaultyFiles::new(fixture(), Arc::clone(&plan));
    let checkpoint = Checkpoint::open(Arc::new(files)).expect("the fixture");
    let name = "layers.1.ffn.gate.tid2eid";
    let tensor = checkpoint.tensor(name).expect("there");
    let ids = checkpoint.token_experts(name, 8).expect("a table");
    assert_eq!(ids.len(), 768 * 2);
    assert!(ids.iter().all(|id| *id < 8) && ids.chunks(2).all(|row| row[0] != row[1]));
    let shard = &checkpoint.shard_of(tensor).name;
    let start = checkpoint.file_offset(tensor);
    let expect = |experts: usize, row: usize, value: i64| {
        let error = checkpoint.token_experts(name, experts).expect_err("refused").to_string();
        let what = format!("{shard}: {name}: row {row} names expert {value}: it must be one of {experts}");
        assert!(error.starts_with(&what), "{error}");
    };
    // Too few experts; another id, a negative number, the same id twice.
    let first = ids.iter().position(|id| *id >= 4).expect("a large id");
    expect(4, first / 2, i64::from(ids[first]));
    let flip = |byte: u64, bit: u8| {
        plan.clear();
        plan.on_bytes(byte..byte + 1, Fault::Flip { offset: byte, bit });
    };
    let at = start + (2 * 700 + 1) * 8;
    flip(at, 3);
    expect(8, 700, i64::from(ids[1401]) + 8);
    flip(at + 7, 7);
    expect(8, 700, i64::MIN + i64::from(ids[1401]));
    let row = ids.chunks(2).position(|row| (row[0] ^ row[1]).is_power_of_two()).expect("a row one bit from a repeat");
    flip(start + (2 * row as u64 + 1) * 8, (ids[2 * row] ^ ids[2 * row + 1]).trailing_zeros() as u8);
    expect(8, row, i64::from(ids[2 * row]));
    plan.clear();
    assert_eq!(checkpoint.token_experts(name, 8).expect("a table"), ids);
    let error = checkpoint.token_experts("layers.1.attn.wkv.weight", 8).expect_err("codes").to_string();
    assert!(error.ends_with("cannot be read as ids of experts"), "{error}");
}

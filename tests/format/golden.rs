//! The format does not drift: a kept file can be read forever, and writing it again gives the same bytes.

use aquatint::raw::format::{Packed, SectionKind};
use aquatint::raw::program::Role;
use common::tiny::{self, AlignedBytes};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden.aqt");

fn golden() -> AlignedBytes {
    AlignedBytes::new(&std::fs::read(GOLDEN).expect(GOLDEN))
}

#[test]
fn the_kept_file_is_the_one_that_was_kept() {
    let bytes = golden();
    assert_eq!(bytes.as_ref().len(), GOLDEN_BYTES);
    assert_eq!(format!("{:032x}", xxh3_128(bytes.as_ref())), GOLDEN_HASH);
}

#[test]
fn the_kept_file_can_be_read() {
    let packed = Packed::new(golden()).expect("sound");
    packed.verify().expect("sound");
    assert_eq!(packed.tensors().len(), GOLDEN_TENSORS);
    let roles: Vec<_> = packed.programs().iter().map(|p| (p.role, p.inputs.len(), p.nodes.len())).collect();
    assert_eq!(roles, [(Role::Denoiser, 3, 45), (Role::VaeDecoder, 1, 8)]);
    let ops: std::collections::BTreeSet<_> =
        packed.programs().iter().flat_map(|p| &p.nodes).map(|n| n.op.name()).collect();
    assert_eq!(ops.len(), 13, "{ops:?}");
    let meta = serde_json::to_value(packed.meta()).expect("META is JSON");
    assert_eq!(meta, serde_json::to_value(tiny::meta()).expect("META is JSON"));
    let section_bytes = tiny::sections(packed.as_bytes()).map(|(_, bytes)| bytes);
    assert_eq!(section_bytes, GOLDEN_SECTIONS);
    assert_eq!(packed.data_bytes() as u64, GOLDEN_SECTIONS[0]);
}

#[test]
fn writing_the_kept_file_again_gives_the_same_bytes() {
    let (new, old) = (tiny::bytes(), golden());
    if new.as_ref() == old.as_ref() {
        return;
    }
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden.aqt");
    std::fs::write(&kept, new.as_ref()).expect("the temporary directory takes files");
    let (new, old) = (tiny::split(new.as_ref()), tiny::split(old.as_ref()));
    let changed: Vec<_> =
        (0..tiny::SECTIONS).filter(|&i| new[i] != old[i]).map(|i| SectionKind::ALL[i].name()).collect();
    panic!("sections {changed:?} changed; if old files stay readable, {} is the new golden file", kept.display());
}

#[test]
fn a_second_writer_made_from_the_documentation_agrees() {
    let bytes = golden();
    assert!(tiny::build(&tiny::split(bytes.as_ref())).as_ref() == bytes.as_ref());
}

// Sizes and hash of the kept file.
const GOLDEN_BYTES: usize = 70714;
const GOLDEN_HASH: &str = "c1bec9e0181f77e7cdd894cb888252bb";
const GOLDEN_TENSORS: usize = 54;
const GOLDEN_SECTIONS: [u64; tiny::SECTIONS] = [45004, 3456, 64, 848, 820, 1889, 1082];

//! Faults of phases: where they begin, and what nodes are in them.

use super::*;
use aquatint::raw::program::{CurveAxis, MAX_PHASES};
use common::networks::phased;

/// A file of one program with four phases, as its sections.
fn whole() -> Vec<Vec<u8>> {
    split(phased(CurveAxis::Timestep, true).open([2, 3]).as_bytes()).to_vec()
}

/// The word at byte `at` of a section.
fn word(section: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(section[at..at + 4].try_into().unwrap())
}

/// The records of NODES that are variants.
fn variants(nodes: &[u8]) -> Vec<usize> {
    (0..nodes.len() / NODE).filter(|i| word(nodes, i * NODE + 12) != 0).collect()
}

#[test]
fn faults_of_phases_are_named() {
    let sections = whole();
    let build = |sections: &[Vec<u8>]| build(&sections.to_vec().try_into().unwrap());
    Packed::new(&build(&sections)).unwrap().verify().unwrap();
    let changed = |section: usize, at: usize, bytes: &[u8]| {
        let mut sections = sections.clone();
        sections[section][at..at + bytes.len()].copy_from_slice(bytes);
        build(&sections)
    };
    // Axis and four starts are the last words of the program.
    let words = word(&sections[PROGRAMS], 8) as usize;
    let axis = 4 * (words - 5);
    let starts = |i: usize| axis + 4 * (1 + i);
    for (at, value, text) in [
        (axis, 2, "program 0 axis of phases: expected 0 to 1, got 2; use a newer aquatint"),
        (starts(0), f32::NAN.to_bits(), "program 0 phase 0: expected a finite start, got NaN"),
        (starts(3), f32::INFINITY.to_bits(), "program 0 phase 3: expected a start after 500, got inf"),
        (starts(2), 250f32.to_bits(), "program 0 phase 2: expected a start after 250, got 250"),
        (starts(1), (-1f32).to_bits(), "program 0 phase 1: expected a start after 0, got -1"),
    ] {
        refused(&changed(ARGS, at, &le(value)), "ARGS", at as u64, text);
    }
    let phases = |n: usize| changed(PROGRAMS, 24, &le(n as u32));
    refused(&phases(1), "PROGRAMS", 24, "program 0 phases: expected 0, or 2 to 32, got 1");
    refused(&phases(MAX_PHASES + 1), "PROGRAMS", 24, "program 0 phases: expected 0, or 2 to 32, got 33");
    refused(&phases(3), "ARGS", 4 * (words as u64 - 1), "words: expected");
    refused(&phases(5), "ARGS", 4 * words as u64, "program 0 phase 4: expected a word, got none");
    refused(&phases(0), "ARGS", axis as u64, "words: expected");

    let found = variants(&sections[NODES]);
    assert_eq!(found.len(), 6);
    let record = |i: usize, field: usize| found[i] * NODE + field;
    let at = |i: usize, field: usize| record(i, field) as u64;
    // Variants 2 and 3 are of one norm, in phases 1 and 2.
    assert_eq!(found[2] + 1, found[3]);
    for (variant, field, bytes, text) in [
        (0, 12, &le(1)[..], "phases: expected bits of 0xe, got 0x1"),
        (0, 12, &le(0x10), "phases: expected bits of 0xe, got 0x10"),
        (3, 12, &le(0b0110), "phases: expected variants of a node in the order of their first phases, each phase once"),
        (2, 12, &le(0b1000), "phases: expected variants of a node in the order of their first phases, each phase once"),
        (0, 0, &[7, 0], "op: expected quantize, as the node that it varies, got add"),
        (0, 2, &[1, 0], "flags and path: expected none, as a variant has those of its node, got 0x1 and 0"),
        (0, 8, &le(1), "flags and path"),
    ] {
        // What is wrong with the order is told of the second.
        let told = if (variant, field) == (2, 12) { 3 } else { variant };
        let offset = if field == 8 { at(told, 2) } else { at(told, field) };
        refused(&changed(NODES, record(variant, field), bytes), "NODES", offset, text);
    }
    // A variant as a node: it has no path, and then there are too few.
    let plain = changed(NODES, record(0, 12), &le(0));
    let (section, _, message) = fault(Packed::new(&plain), "a variant as a node");
    assert!(section == "STRINGS" && message.contains("name: expected 1 to 255 bytes"), "{message}");
    // A first record that is a variant.
    refused(&changed(NODES, 12, &le(2)), "NODES", 12, "phases: expected 0, as there is no node before, got 0x2");
}

/// What is sound in the first phase and unsound in another is found when the file is verified, and when it is planned.
#[test]
fn every_phase_is_verified() {
    let mut sections = whole();
    let floats = variants(&sections[NODES])[3] * NODE + 12;
    assert_eq!(word(&sections[NODES], floats), 0b0100, "the norm that makes floats");
    sections[NODES][floats] = 0b1000;
    let file = build(&sections.try_into().unwrap());
    let packed = Packed::new(&file).unwrap();
    for result in [packed.verify(), Plan::of_role(&Cpu::new(Scalar), &packed, Role::Denoiser, &SHAPE).map(|_| ())] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("linear") && message.contains("integer"), "{message}");
    }
}

#[test]
fn damaged_phases_never_panic() {
    let sections = whole();
    let sound = build(&sections.clone().try_into().unwrap());
    let mut opened = 0;
    let mut rng = Noise(7);
    for round in 0..400 {
        let mut sections = sections.clone();
        let section = [PROGRAMS, NODES, ARGS][round % 3];
        let at = rng.below(sections[section].len());
        sections[section][at] ^= 1 << rng.below(8);
        opened += usize::from(survive(&build(&sections.try_into().unwrap()), || format!("round {round}")));
    }
    assert!(survive(&sound, || "sound".into()));
    assert!(opened < 400);
}

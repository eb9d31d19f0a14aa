//! What is wrong with a file is named: each field of its header and tables, one at a time.

use super::*;

#[test]
fn header_faults_are_named() {
    let len = sound().as_ref().len() as u64;
    let cases: &[(usize, &[u8], u64, &str)] = &[
        (0, b"PK\x03\x04", 0, "magic: expected an .aqt file"),
        (7, b"\r", 0, "magic"),
        (8, &le(3), 8, "version: expected 2, got 3; use a newer aquatint"),
        (8, &le(u32::MAX), 8, "use a newer aquatint"),
        (8, &le(1), 8, "version: expected 2, got 1; pack the model again with this version's packer"),
        (8, &le(0), 8, "version: expected 2, got 0; pack the model again"),
        (12, &le(0), 12, "section count: expected 7, got 0"),
        (12, &le(6), 12, "section count"),
        (12, &le(8), 12, "section count"),
        (12, &le(u32::MAX), 12, "section count"),
        (16, &[1], 16, "required features: expected none, got 0x1; use a newer aquatint"),
        (23, &[0x80], 16, "got 0x8000000000000000; use a newer aquatint"),
        (24, &(len - 1).to_le_bytes(), 24, "the file is cut short or has been appended to; copy or pack it again"),
        (24, &(len + 1).to_le_bytes(), 24, "file size"),
        (24, &[0; 8], 24, "file size"),
        (24, &[0xff; 8], 24, "file size"),
        (48, &[1], 48, "reserved"),
        (63, &[0x80], 48, "reserved"),
    ];
    for &(at, bytes, offset, text) in cases {
        let mut file = with(at, bytes);
        reseal_root(file.as_mut());
        refused(&file, "header", offset, text);
    }
    for at in 32..48 {
        let flipped = sound().as_ref()[at] ^ 1;
        refused(&with(at, &[flipped]), "header", 32, "the file is damaged");
    }
}

#[test]
fn section_table_faults_are_named() {
    let table = sections(sound().as_ref());
    let len = sound().as_ref().len() as u64;
    for (i, &(at, bytes)) in table.iter().enumerate() {
        let record = 64 + 48 * i;
        let first = record as u64;
        let mut cases: Vec<(usize, Vec<u8>, u64, &str)> = vec![
            (0, le(0).into(), first, "section kind"),
            (0, le(8).into(), first, "section kind"),
            (0, le((i as u32 + 1) % 7 + 1).into(), first, "section kind"),
            (4, le(1).into(), first + 4, "reserved"),
            (40, vec![1], first + 4, "reserved"),
        ];
        for offset in [0, at - 4096, at - 64, at + 1, at + 4096, len, u64::MAX - 4095, u64::MAX] {
            cases.push((8, offset.to_le_bytes().into(), first + 8, "section offset"));
        }
        // Sizes that end behind the file, overflow 64 bits, or come round to the same place.
        for bytes in [len, len - at + 1, u64::MAX, u64::MAX - at, u64::MAX - at + 1, (1 << 63) + bytes] {
            cases.push((16, bytes.to_le_bytes().into(), first + 16, "section size"));
        }
        if i < META {
            // One that swallows the next section.
            let swallow = (table[i + 1].0 - at + 1).to_le_bytes();
            cases.push((16, swallow.into(), first + 48 + 8, "section offset"));
        } else {
            cases.push((16, (bytes - 1).to_le_bytes().into(), 24, "the end of the last section"));
            cases.push((16, [0; 8].into(), 24, "the end of the last section"));
        }
        for (field, bytes, offset, text) in cases {
            let mut file = with(record + field, &bytes);
            reseal_root(file.as_mut());
            refused(&file, "header", offset, text);
        }
        // A hash that is not that of the bytes.
        let mut file = sound();
        file.as_mut()[record + 24] ^= 1;
        reseal_root(file.as_mut());
        let name = SectionKind::ALL[i].name();
        if i == DATA {
            unverified(&file, name, 0, "hash");
        } else {
            refused(&file, name, 0, "hash");
        }
    }
}

#[test]
fn tensor_faults_are_named() {
    let s = start(TENSORS);
    let n = split(sound().as_ref())[TENSORS].len() / TENSOR;
    let last = (n - 1) * TENSOR; // f32 [3]
    let vast = [0xff; 20];
    // Record 0 is f32 [8, 8], record 1 is f32 [8], record 3 is codes (24, 8).
    let (codes, rank1) = (3 * TENSOR, TENSOR);
    let cases: &[(usize, &[u8], u64, &str)] = &[
        (20, &[0], 20, "tensor 0 rank: expected 1 to 5, got 0"),
        (20, &[6], 20, "tensor 0 rank"),
        (20, &[255], 20, "tensor 0 rank"),
        (20, &[1], 0, "tensor 0 dims: expected 1 beyond rank 1"),
        (8, &le(2), 0, "tensor 0 dims: expected 1 beyond rank 2"),
        (12, &le(0), 0, "tensor 0 dims: expected 1 beyond rank 2"),
        (0, &le(0), 0, "tensor 0 dims: expected 1 to 2^36 weights, got [0, 8]"),
        (0, &[vast.as_slice(), &[5]].concat(), 0, "tensor 0 dims: expected 1 to 2^36 weights"),
        (0, &[le(1 << 20), le((1 << 16) + 1)].concat(), 0, "tensor 0 dims: expected 1 to 2^36 weights"),
        (21, &[5, 0, 0], 21, "kind, bits, grain: expected a known combination, got (5, 0, 0)"),
        (21, &[4, 4, 0], 21, "kind, bits, grain: expected a known combination, got (4, 4, 0)"),
        (21, &[4, 0, 1], 21, "kind, bits, grain"),
        (21, &[4, 0, 0], 20, "tensor 0 rank: expected 1 for bytes, got 2"),
        (rank1 + 21, &[4], (rank1 + 36) as u64, "tensor 1 bytes: expected 8, got 32"),
        (21, &[255, 4, 0], 21, "kind, bits, grain"),
        (21, &[0, 4, 0], 21, "kind, bits, grain"),
        (21, &[0, 0, 1], 21, "kind, bits, grain"),
        (21, &[1, 8, 0], 21, "kind, bits, grain"),
        (codes + 23, &[2], (codes + 21) as u64, "tensor 3 kind, bits, grain"),
        (codes + 22, &[0], (codes + 22) as u64, "tensor 3 bits: expected 2, 3, 4, 5, 6 or 8, got 0"),
        (codes + 22, &[1], (codes + 22) as u64, "tensor 3 bits"),
        (codes + 22, &[7], (codes + 22) as u64, "tensor 3 bits"),
        (codes + 22, &[16], (codes + 22) as u64, "tensor 3 bits"),
        (rank1 + 21, &[2, 4, 0], (rank1 + 20) as u64, "tensor 1 rank: expected 2 or 4 for codes, got 1"),
        (44, &[1], 44, "tensor 0 reserved"),
        (63, &[1], 44, "tensor 0 reserved"),
        (28, &[64], 28, "tensor 0 offset: expected 0, got 64"),
        (28, &[0xff; 8], 28, "tensor 0 offset"),
        (rank1 + 28, &[0; 8], (rank1 + 28) as u64, "tensor 1 offset: expected 256, got 0"),
        (36, &[255], 36, "tensor 0 bytes: expected 256, got 511"),
        (36, &[0xff; 8], 36, "tensor 0 bytes"),
        (36, &[0; 8], 36, "tensor 0 bytes"),
        (21, &[1], 36, "tensor 0 bytes: expected 128, got 256"),
        (0, &le(9), 36, "tensor 0 bytes: expected 288, got 256"),
        (codes + 22, &[8], (codes + 36) as u64, "tensor 3 bytes"),
        (codes + 21, &[2], (codes + 36) as u64, "tensor 3 bytes"),
    ];
    for &(at, bytes, offset, text) in cases {
        refused(&sealed(s + at, bytes), "TENSORS", offset, text);
    }
    for len in [0, 256, u32::MAX] {
        refused(&sealed(s + 24, &le(len)), "STRINGS", 0, &format!("name: expected 1 to 255 bytes, got {len} bytes"));
    }
    // A last tensor that is consistent in itself and larger than DATA.
    let mut file = with(s + last, &le(1000));
    file.as_mut()[s + last + 36..][..8].copy_from_slice(&4000u64.to_le_bytes());
    reseal(file.as_mut());
    refused(&file, "TENSORS", last as u64 + 36, "end: expected within DATA");

    let cut = |section: usize, change: fn(&mut Vec<u8>)| {
        let mut sections = split(sound().as_ref());
        change(&mut sections[section]);
        build(&sections)
    };
    let size = split(sound().as_ref())[DATA].len() as u64;
    refused(&cut(DATA, |d| d.push(0)), "DATA", size, "the end of the last tensor");
    refused(&cut(DATA, |d| d.extend([0; 64])), "DATA", size, "the end of the last tensor");
    refused(&cut(DATA, |d| d.truncate(d.len() - 1)), "TENSORS", last as u64 + 36, "end");
    refused(&cut(DATA, Vec::clear), "TENSORS", 36, "end");
    refused(&cut(TENSORS, |t| t.push(0)), "TENSORS", 0, "size: expected a multiple of 64");
    refused(&cut(TENSORS, |t| t.resize((1 << 16) * 64 + 64, 0)), "TENSORS", 0, "record count: expected at most 65536");
    refused(&cut(PROGRAMS, |p| p.push(0)), "PROGRAMS", 0, "size: expected a multiple of 32");
    refused(&cut(PROGRAMS, |p| p.resize(17 * 32, 0)), "PROGRAMS", 0, "record count: expected at most 16, got 17");
    refused(&cut(NODES, |n| n.push(0)), "NODES", 0, "size: expected a multiple of 16");
    refused(&cut(NODES, |n| n.resize((1 << 14) * 16 + 16, 0)), "NODES", 0, "record count: expected at most 16384");
}

#[test]
fn program_faults_are_named() {
    let s = start(PROGRAMS);
    let second = PROGRAM;
    let cases: &[(usize, &[u8], u64, &str)] = &[
        (0, &le(6), 0, "program 0 role: expected 0 to 5, got 6; use a newer aquatint"),
        (0, &le(u32::MAX), 0, "program 0 role"),
        (second, &le(0), 32, "role: expected each role once, got denoiser"),
        (4, &le(17), 4, "program 0 input count: expected at most 16, got 17"),
        (4, &le(u32::MAX), 4, "program 0 input count"),
        (4, &le(2), 20, "program 0 output: expected one of its values, got 47 of 47"),
        (12, &le(1), 12, "node range: expected nodes from 0, at most 53, got 1..46"),
        (12, &le(u32::MAX), 12, "node range"),
        (16, &le(54), 12, "node range"),
        (16, &le((1 << 14) + 1), 16, "program 0 node count: expected at most 16384, got 16385"),
        (16, &le(u32::MAX), 16, "program 0 node count"),
        (second + 12, &le(44), 44, "node range"),
        (second + 16, &le(9), 44, "node range"),
        (20, &le(48), 20, "program 0 output: expected one of its values, got 48 of 48"),
        (20, &le(u32::MAX), 20, "program 0 output"),
        (24, &le(1), 24, "program 0 phases: expected 0, or 2 to 32, got 1"),
        (24, &le(33), 24, "program 0 phases: expected 0, or 2 to 32, got 33"),
        (28, &[1], 28, "program 0 reserved: expected zeros"),
        (second + 31, &[0x80], 60, "program 1 reserved"),
    ];
    for &(at, bytes, offset, text) in cases {
        refused(&sealed(s + at, bytes), "PROGRAMS", offset, text);
    }
    // One node of the second program left over, with its path.
    refused(&sealed(s + second + 16, &le(7)), "PROGRAMS", 52, "program 1 output");
    let mut file = with(s + second + 16, &le(7));
    file.as_mut()[s + second + 20..][..4].copy_from_slice(&le(0));
    reseal(file.as_mut());
    refused(&file, "NODES", 52 * NODE as u64, "node count: expected 52, got 53");
    // No program at all.
    let mut sections = split(sound().as_ref());
    sections[PROGRAMS].clear();
    refused(&build(&sections), "NODES", 0, "node count: expected 0, got 53");
}

#[test]
fn input_faults_are_named() {
    let (s, programs) = (start(ARGS), start(PROGRAMS));
    let words = split(sound().as_ref())[ARGS].len() / 4;
    // The sample has 7 words, the timestep and the labels 4 each.
    let cases: &[(usize, u32, &str)] = &[
        (0, 10, "program 0 input 0 kind: expected 0 to 9, got 10; use a newer aquatint"),
        (0, u32::MAX, "program 0 input 0 kind"),
        (1, 1, "program 0 input 0 index: expected 0, got 1; use a newer aquatint"),
        (1, u32::MAX, "program 0 input 0 index"),
        (2, 0, "program 0 input 0 axes: expected 1 to 5, got 0"),
        (2, 6, "program 0 input 0 axes: expected 1 to 5, got 6"),
        (2, u32::MAX, "program 0 input 0 axes"),
        (3, 1 << 31 | 6, "program 0 input 0 axis 0: expected a length or a known symbol, got 0x80000006; use a newer"),
        (14, u32::MAX, "program 0 input 2 axis 0"),
    ];
    for &(word, value, text) in cases {
        refused(&sealed(s + 4 * word, &le(value)), "ARGS", 4 * word as u64, text);
    }
    let counts = [
        (4, 4, 15, "program 0 input 3 kind: expected a word, got none"),
        (8, 14, 14, "program 0 input 2 axis 0: expected a word, got none"),
        (8, 0, 0, "program 0 input 0 kind: expected a word, got none"),
        (8, 16, 15, "program 0 words: expected 15, the end of the last input or phase, got 16"),
        (8, u32::MAX, 0, &format!("program 0 words: expected 4294967295 words, got a section of {words} words")),
    ];
    for (field, value, word, text) in counts {
        refused(&sealed(programs + field, &le(value)), "ARGS", 4 * word, text);
    }
    // An input that is declared twice, or with the axes of another kind, opens and is refused by the shape rules.
    for (word, value) in [(11, 1), (7, 2), (10, 2), (3, 2)] {
        let file = sealed(s + 4 * word, &le(value));
        match Packed::new(&file).expect("sound").verify() {
            Err(Error::Shape { path, .. }) => assert!(path.starts_with("denoiser input"), "{path}"),
            other => panic!("word {word}: {other:?}"),
        }
    }
}

// Nodes of the first program.
const TIME: usize = 0;
const TIME1: usize = 1;
const EMBED: usize = 2;
const ADD: usize = 3;
const PATCHIFY: usize = 6;
const NORM1: usize = 9;
const Q: usize = 10;
const ATTENTION: usize = 13;
const OUT: usize = 14;
const NORM2: usize = 15;
const QUANTIZE: usize = 17;

/// The place in ARGS of word `word` of node `node`.
fn word_at(node: usize, word: usize) -> u64 {
    4 * (first_word(sound().as_ref(), node) + word) as u64
}

#[test]
fn node_faults_are_named() {
    let s = start(NODES);
    let cases: &[(usize, usize, &[u8], &str)] = &[
        (TIME, 0, &[0], "op: expected 1 to 24, got 0; use a newer aquatint"),
        (TIME, 0, &[25], "op: expected 1 to 24, got 25; use a newer aquatint"),
        (TIME, 0, &[255], "op"),
        (TIME, 1, &[1], "op: expected 1 to 24, got 266"),
        (TIME, 2, &[2], "flags: expected 0 or 1, got 0x2; use a newer aquatint"),
        (OUT, 2, &[3], "flags"),
        (OUT, 3, &[0x80], "flags"),
        (ADD, 12, &[1], "phases: expected 0, as the program has one phase, got 0x1"),
        (ADD, 15, &[0x80], "phases"),
    ];
    for &(node, field, bytes, text) in cases {
        let offset = (node * NODE + if field == 1 { 0 } else { field & !1 }) as u64;
        let offset = if field > 12 { (node * NODE + 12) as u64 } else { offset };
        refused(&sealed(s + node * NODE + field, bytes), "NODES", offset, &format!("node {node} {text}"));
    }
    for len in [0, 256, u32::MAX] {
        let (section, _, message) = fault(Packed::new(&sealed(s + 8, &le(len))), "path");
        assert!(section == "STRINGS" && message.contains("name: expected 1 to 255 bytes"), "{message}");
    }
    let words = split(sound().as_ref())[ARGS].len() / 4;
    let counts = [
        (ADD, 3, 2, "node 3 add words: expected at most 2, got 3; use a newer aquatint".to_owned()),
        (ADD, 1, 1, "node 3 add b: expected a value below 6, got none".to_owned()),
        (ADD, 0, 0, "node 3 add a: expected a value below 6, got none".to_owned()),
        (ADD, u32::MAX, 0, format!("node 3 add words: expected 4294967295 words, got a section of {words} words")),
    ];
    for (node, len, word, text) in counts {
        refused(&sealed(s + node * NODE + 4, &le(len)), "ARGS", word_at(node, word), &text);
    }
    // Another op whose words these cannot be, or can.
    let ops = [
        (Q, 15, None),
        (OUT, 15, Some((4, "node 14 gated_linear words: expected at most 4, got 7; use a newer aquatint"))),
        (PATCHIFY, 17, Some((1, "node 6 resample how: expected 0 to 1, got 2; use a newer aquatint"))),
        (OUT, 16, Some((2, "node 14 vector_quantize words: expected at most 2, got 7"))),
        (EMBED, 16, None),
        (EMBED, 18, Some((1, "node 2 parameter flat: expected 0 or 1, got 3"))),
    ];
    for (node, op, fault) in ops {
        let file = sealed(s + node * NODE, &[op]);
        match fault {
            Some((word, text)) => refused(&file, "ARGS", word_at(node, word), text),
            None => assert!(Packed::new(&file).is_ok(), "node {node} as op {op}"),
        }
    }
}

#[test]
fn word_faults_are_named() {
    let s = start(ARGS);
    // Node, word, its new value, the word at which that is found.
    let cases: &[(usize, usize, u32, usize, &str)] = &[
        (TIME, 0, 4, 0, "t: expected a value below 3, got 3"),
        (TIME, 0, 0, 0, "t: expected a value below 3, got none"),
        (TIME, 0, u32::MAX, 0, "t: expected a value below 3, got 4294967294"),
        (TIME, 2, 2, 2, "cos first: expected 0 or 1, got 2"),
        (TIME, 2, u32::MAX, 2, "cos first"),
        (TIME1, 3, 5, 3, "act: expected 0 to 4, got 5; use a newer aquatint"),
        (TIME1, 3, u32::MAX, 3, "act"),
        (TIME1, 3, 0, 3, "last word: expected no zero, got 0"),
        (EMBED, 0, 0, 0, "index: expected a value below 5, got none"),
        (EMBED, 1, 55, 1, "table: expected a tensor below 54, got 54"),
        (ADD, 0, 0, 0, "a: expected a value below 6, got none"),
        (ADD, 1, 7, 1, "b: expected a value below 6, got 6"),
        (ADD, 1, 48, 1, "b"),
        (Q, 1, 55, 1, "weight: expected a tensor below 54, got 54"),
        (ATTENTION, 2, 17, 2, "v: expected a value below 16, got 16"),
        (OUT, 1, 0, 1, "weight: expected a tensor below 54, got none"),
        (OUT, 2, 55, 2, "bias: expected a tensor below 54, got 54"),
        (OUT, 2, u32::MAX, 2, "bias"),
        (OUT, 3, 5, 3, "act: expected 0 to 4, got 5"),
        (OUT, 4, 18, 4, "gate: expected a value below 17, got 17"),
        // Without a gate its first column means nothing.
        (OUT, 4, 0, 5, "first column of gate: expected 0, got 16"),
        (OUT, 6, 18, 6, "residual: expected a value below 17, got 17"),
        (NORM1, 4, 0, 6, "first column of shift: expected 0, got 8"),
        (NORM1, 7, 0, 7, "last word: expected no zero, got 0"),
        (NORM1, 7, 256, 7, "quantize bits: expected 255, got 256"),
        (NORM2, 5, 1, 5, "first column of scale: expected 0, got 1"),
        (NORM2, 7, 0, 9, "quantize range: expected 0, got 1"),
        (NORM2, 8, 2, 8, "quantize grain: expected 0 to 1, got 2; use a newer aquatint"),
        (NORM2, 9, 3, 9, "quantize range: expected 0 to 2, got 3; use a newer aquatint"),
        (NORM2, 9, 0, 10, "quantize curve: expected 0, got"),
        (NORM2, 10, 55, 10, "quantize curve: expected a tensor below 54, got 54"),
        (NORM2, 10, u32::MAX, 10, "quantize curve"),
        (QUANTIZE, 1, 0, 1, "quantize bits: expected 8, got 0"),
    ];
    for &(node, word, value, found, text) in cases {
        let file = sealed(s + word_at(node, word) as usize, &le(value));
        let (section, offset, message) = fault(Packed::new(&file), text);
        assert_eq!((section, offset), ("ARGS", word_at(node, found)), "{message}");
        assert!(message.contains(&format!("node {node} ")) && message.contains(text), "{text}: {message}");
    }
    // Other numbers that are as sound a structure.
    for (node, word, value) in [(NORM2, 8, 1), (NORM2, 9, 2), (NORM1, 7, 7), (Q, 0, 1), (ATTENTION, 3, 0)] {
        Packed::new(&sealed(s + word_at(node, word) as usize, &le(value))).expect("sound");
    }

    let changed = |change: fn(&mut [Vec<u8>; tiny::SECTIONS])| {
        let mut sections = split(sound().as_ref());
        change(&mut sections);
        build(&sections)
    };
    let len = split(sound().as_ref())[ARGS].len() as u64;
    refused(&changed(|s| s[ARGS].push(0)), "ARGS", 0, "size: expected a multiple of 4");
    refused(&changed(|s| s[ARGS].extend([1; 4])), "ARGS", len, "word count: expected");
    refused(&changed(|s| s[ARGS].clear()), "ARGS", 0, "program 0 words: expected 15 words, got a section of 0 words");
    let short = changed(|s| s[ARGS].truncate(s[ARGS].len() - 4));
    let (section, _, message) = fault(Packed::new(&short), "a word short");
    assert!(section == "ARGS" && message.contains("node 52 conv2d words: expected"), "{message}");
    // A zero at the end of a run.
    let zero = changed(|s| {
        let at = 4 * (first_word(sound().as_ref(), Q) + 2);
        s[ARGS].splice(at..at, [0; 4]);
        s[NODES][Q * NODE + 4] = 3;
    });
    refused(&zero, "ARGS", word_at(Q, 2), "node 10 linear last word: expected no zero, got 0");
    // A range that needs a curve, without one.
    let bare = changed(|s| {
        let at = 4 * (first_word(sound().as_ref(), NORM1) + 8);
        s[ARGS].splice(at..at, [0, 0, 0, 0, 1, 0, 0, 0]);
        s[NODES][NORM1 * NODE + 4] = 10;
    });
    refused(&bare, "ARGS", word_at(NORM1, 9), "node 9 layer_norm quantize range: expected 0, got 1");
}

#[test]
fn string_faults_are_named() {
    let s = start(STRINGS);
    let cases: &[(&[u8], &str)] = &[
        (&[0xff], "name: expected UTF-8, got [ff,"),
        (&[0xc0, 0x80], "name: expected UTF-8"),
        (&[0xed, 0xa0, 0x80], "name: expected UTF-8"),
        (b"\n", "name: expected no control characters"),
        (b"\0", "name: expected no control characters"),
        (b"\x1b[31m", "name: expected no control characters, got \"\\u{1b}[31m"),
        (b"\x7f", "name: expected no control characters"),
        ("\u{85}".as_bytes(), "name: expected no control characters"),
    ];
    for &(bytes, text) in cases {
        let file = sealed(s, bytes);
        refused(&file, "STRINGS", 0, text);
        // No message carries the control character itself to a terminal.
        let (_, _, message) = fault(Packed::new(&file), text);
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut sections = split(sound().as_ref());
        change(&mut sections[STRINGS]);
        build(&sections)
    };
    let len = split(sound().as_ref())[STRINGS].len() as u64;
    refused(&changed(|s| s.push(b'x')), "STRINGS", len, "size");
    refused(&changed(Vec::clear), "STRINGS", 0, "name: expected 23 bytes, got a section of 0 bytes");
    let short = changed(|s| s.truncate(s.len() - 1));
    refused(&short, "STRINGS", len - 3, "name: expected 3 bytes"); // the last path is `out`
}

#[test]
fn meta_faults_are_named() {
    let of = |json: Vec<u8>| {
        let mut sections = split(sound().as_ref());
        sections[META] = json;
        build(&sections)
    };
    let good = String::from_utf8(split(sound().as_ref())[META].clone()).expect("JSON is UTF-8");
    let swap = |from: &str, to: &str| {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        of(good.replace(from, to).into_bytes())
    };
    let json = "JSON: expected the fields of this version, got ";
    let refuse = |file: &AlignedBytes, text: &str| {
        let (section, offset, message) = fault(Packed::new(file), text);
        let len = split(file.as_ref())[META].len() as u64;
        assert!(section == "META" && offset <= len, "{message}");
        assert!(message.contains(&format!("{json}{text}")), "{text}: {message}");
        assert!(!survive(file, || text.into()));
    };
    refuse(&of(b"x".to_vec()), "expected value");
    refuse(&of(b"{".to_vec()), "EOF");
    refuse(&of(b"null".to_vec()), "invalid type: null, expected struct Meta");
    refuse(&of(b"{}".to_vec()), "missing field");
    refuse(&of(b"[[]]".to_vec()), "invalid type");
    refuse(&of([0xff; 100].to_vec()), "expected value");
    refuse(&of(vec![b'['; 1 << 20]), "invalid type");
    let deep = format!("\"tiny\",\"class\":{}", "[".repeat(1 << 20));
    refuse(&swap("\"tiny\",\"class\":\"DiTPipeline\"", &deep), "invalid type: sequence, expected a string");
    refuse(&of(format!("{good}x").into_bytes()), "trailing characters");
    refuse(&of(good[..good.len() - 1].into()), "EOF");
    refuse(&swap("\"tool\":", "\"tools\":"), "unknown field `tools`");
    refuse(&swap("\"steps\":4", "\"steps\":4,\"steps\":4"), "duplicate field `steps`");
    refuse(&swap("\"steps\":4", "\"steps\":-4"), "invalid value: integer `-4`, expected u32");
    refuse(&swap("\"steps\":4", "\"steps\":4294967296"), "invalid value: integer `4294967296`, expected u32");
    refuse(&swap("\"guidance_scale\":1.5", "\"guidance_scale\":NaN"), "expected value");
    refuse(&swap("\"guidance_scale\":1.5", "\"guidance_scale\":1e999"), "number out of range");
    refuse(&swap("[4,6]", "[4]"), "invalid length 1");
    refuse(&swap("[4,6]", "[4,6,8]"), "trailing characters");
    refuse(&swap("\"kind\":\"ddim\"", "\"kind\":\"dream\""), "unknown variant `dream`");
    refuse(&swap("κύκλος", "\u{1}"), "control character");

    let mut huge = good.clone().into_bytes();
    huge.resize((64 << 20) + 1, b' ');
    refused(&of(huge), "META", 0, "size: expected at most 67108864, got 67108865");
    // The offset is that of the fault, over several lines too.
    let lines = good.replace(',', ",\n").replace("\"steps\"", "\"stops\"");
    let at = lines.find("\"stops\"").expect("just put there") as u64;
    let (_, offset, message) = fault(Packed::new(&of(lines.into_bytes())), "stops");
    assert!((at..at + 8).contains(&offset), "{message}: {at}");
    // White space is no fault; a size that no program can take is found by `verify`.
    Packed::new(&of(good.replace(',', ",\n").into_bytes())).expect("JSON");
    for size in ["[0,6]", "[4294967295,4294967295]", "[3,6]"] {
        let file = swap("[4,6]", size);
        let Err(Error::Shape { .. }) = Packed::new(&file).expect("opens").verify() else { panic!("{size}") };
    }
}

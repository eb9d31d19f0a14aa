//! What is wrong with a file is named: each field of its header and tables, one at a time.

use super::*;

#[test]
fn header_faults_are_named() {
    let len = sound().as_ref().len() as u64;
    let cases: &[(usize, &[u8], u64, &str)] = &[
        (0, b"PK\x03\x04", 0, "magic: expected an .aqt file"),
        (7, b"\r", 0, "magic"),
        (8, &le(2), 8, "version: expected 1, got 2; use a newer aquatint"),
        (8, &le(u32::MAX), 8, "use a newer aquatint"),
        (8, &le(0), 8, "version: expected 1, got 0; pack the model again"),
        (12, &le(0), 12, "section count: expected 6, got 0"),
        (12, &le(5), 12, "section count"),
        (12, &le(7), 12, "section count"),
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
            (0, le(7).into(), first, "section kind"),
            (0, le((i as u32 + 1) % 6 + 1).into(), first, "section kind"),
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
    let vast = [0xff; 16];
    // Record 0 is f32 [8, 8], record 1 is f32 [8], record 3 is codes (24, 8).
    let (codes, rank1) = (3 * TENSOR, TENSOR);
    let cases: &[(usize, &[u8], u64, &str)] = &[
        (16, &[0], 16, "tensor 0 rank: expected 1 to 4, got 0"),
        (16, &[5], 16, "tensor 0 rank"),
        (16, &[255], 16, "tensor 0 rank"),
        (16, &[1], 0, "tensor 0 dims: expected 1 beyond rank 1"),
        (8, &le(2), 0, "tensor 0 dims: expected 1 beyond rank 2"),
        (12, &le(0), 0, "tensor 0 dims: expected 1 beyond rank 2"),
        (0, &le(0), 0, "tensor 0 dims: expected 1 to 2^36 weights, got [0, 8]"),
        (0, &[vast.as_slice(), &[4]].concat(), 0, "tensor 0 dims: expected 1 to 2^36 weights"),
        (0, &[le(1 << 20), le((1 << 16) + 1)].concat(), 0, "tensor 0 dims: expected 1 to 2^36 weights"),
        (17, &[5, 0, 0], 17, "kind, bits, grain: expected a known combination, got (5, 0, 0)"),
        (17, &[4, 4, 0], 17, "kind, bits, grain: expected a known combination, got (4, 4, 0)"),
        (17, &[4, 0, 1], 17, "kind, bits, grain"),
        (17, &[4, 0, 0], 16, "tensor 0 rank: expected 1 for bytes, got 2"),
        (rank1 + 17, &[4], (rank1 + 32) as u64, "tensor 1 bytes: expected 8, got 32"),
        (17, &[255, 4, 0], 17, "kind, bits, grain"),
        (17, &[0, 4, 0], 17, "kind, bits, grain"),
        (17, &[0, 0, 1], 17, "kind, bits, grain"),
        (17, &[1, 8, 0], 17, "kind, bits, grain"),
        (codes + 19, &[2], (codes + 17) as u64, "tensor 3 kind, bits, grain"),
        (codes + 18, &[0], (codes + 18) as u64, "tensor 3 bits: expected 2, 3, 4, 5, 6 or 8, got 0"),
        (codes + 18, &[1], (codes + 18) as u64, "tensor 3 bits"),
        (codes + 18, &[7], (codes + 18) as u64, "tensor 3 bits"),
        (codes + 18, &[16], (codes + 18) as u64, "tensor 3 bits"),
        (rank1 + 17, &[2, 4, 0], (rank1 + 16) as u64, "tensor 1 rank: expected 2 or 4 for codes, got 1"),
        (40, &[1], 40, "tensor 0 reserved"),
        (63, &[1], 40, "tensor 0 reserved"),
        (24, &[64], 24, "tensor 0 offset: expected 0, got 64"),
        (24, &[0xff; 8], 24, "tensor 0 offset"),
        (rank1 + 24, &[0; 8], (rank1 + 24) as u64, "tensor 1 offset: expected 256, got 0"),
        (32, &[255], 32, "tensor 0 bytes: expected 256, got 511"),
        (32, &[0xff; 8], 32, "tensor 0 bytes"),
        (32, &[0; 8], 32, "tensor 0 bytes"),
        (17, &[1], 32, "tensor 0 bytes: expected 128, got 256"),
        (0, &le(9), 32, "tensor 0 bytes: expected 288, got 256"),
        (codes + 18, &[8], (codes + 32) as u64, "tensor 3 bytes"),
        (codes + 17, &[2], (codes + 32) as u64, "tensor 3 bytes"),
    ];
    for &(at, bytes, offset, text) in cases {
        refused(&sealed(s + at, bytes), "TENSORS", offset, text);
    }
    for len in [0, 256, u32::MAX] {
        refused(&sealed(s + 20, &le(len)), "STRINGS", 0, &format!("name: expected 1 to 255 bytes, got {len} bytes"));
    }
    // A last tensor that is consistent in itself and larger than DATA.
    let mut file = with(s + last, &le(1000));
    file.as_mut()[s + last + 32..][..8].copy_from_slice(&4000u64.to_le_bytes());
    reseal(file.as_mut());
    refused(&file, "TENSORS", last as u64 + 32, "end: expected within DATA");

    let cut = |section: usize, change: fn(&mut Vec<u8>)| {
        let mut sections = split(sound().as_ref());
        change(&mut sections[section]);
        build(&sections)
    };
    let size = split(sound().as_ref())[DATA].len() as u64;
    refused(&cut(DATA, |d| d.push(0)), "DATA", size, "the end of the last tensor");
    refused(&cut(DATA, |d| d.extend([0; 64])), "DATA", size, "the end of the last tensor");
    refused(&cut(DATA, |d| d.truncate(d.len() - 1)), "TENSORS", last as u64 + 32, "end");
    refused(&cut(DATA, Vec::clear), "TENSORS", 32, "end");
    refused(&cut(TENSORS, |t| t.push(0)), "TENSORS", 0, "size: expected a multiple of 64");
    refused(&cut(TENSORS, |t| t.resize((1 << 16) * 64 + 64, 0)), "TENSORS", 0, "record count: expected at most 65536");
    refused(&cut(PROGRAMS, |p| p.push(0)), "PROGRAMS", 0, "size: expected a multiple of 128");
    refused(&cut(PROGRAMS, |p| p.resize(17 * 128, 0)), "PROGRAMS", 0, "record count: expected at most 16, got 17");
    refused(&cut(NODES, |n| n.push(0)), "NODES", 0, "size: expected a multiple of 80");
    refused(&cut(NODES, |n| n.resize((1 << 14) * 80 + 80, 0)), "NODES", 0, "record count: expected at most 16384");
}

#[test]
fn program_faults_are_named() {
    let s = start(PROGRAMS);
    let second = PROGRAM;
    let slot = |i: usize| 24 + 20 * i;
    let cases: &[(usize, &[u8], u64, &str)] = &[
        (0, &le(6), 0, "program 0 role: expected a known role, got 6"),
        (0, &le(u32::MAX), 0, "program 0 role"),
        (second, &le(0), 128, "role: expected each role once, got denoiser"),
        (4, &le(6), 4, "program 0 input count: expected at most 5, got 6"),
        (4, &le(u32::MAX), 4, "program 0 input count"),
        (4, &le(2), 16, "program 0 output: expected one of its values, got 47 of 47"),
        (4, &le(4), slot(3) as u64, "program 0 input: expected a known kind and 1 to 4 axes, got kind 0 rank 0"),
        (slot(0), &[0], slot(0) as u64, "program 0 input"),
        (slot(0), &[8], slot(0) as u64, "program 0 input"),
        (slot(1) + 1, &[0], slot(1) as u64, "program 0 input"),
        (slot(1) + 1, &[5], slot(1) as u64, "program 0 input"),
        (slot(2) + 4, &le(1 << 31 | 5), slot(2) as u64, "program 0 input axes: expected known symbols"),
        (slot(2) + 4, &le(u32::MAX), slot(2) as u64, "program 0 input axes"),
        (slot(2) + 2, &[1], 20, "program 0 unused fields"),
        (slot(2) + 8, &[1], 20, "program 0 unused fields"),
        (slot(3), &[1], 20, "program 0 unused fields"),
        (slot(3) + 16, &[1], 20, "program 0 unused fields"),
        (20, &[1], 20, "program 0 unused fields"),
        (slot(4), &[1], 20, "program 0 unused fields"),
        (124, &[1], 20, "program 0 unused fields"),
        (127, &[1], 20, "program 0 unused fields"),
        (8, &le(1), 8, "node range: expected nodes from 0, at most 53, got 1..46"),
        (8, &le(u32::MAX), 8, "node range"),
        (12, &le(54), 8, "node range"),
        (12, &le(u32::MAX), 8, "node range"),
        (second + 8, &le(44), 136, "node range"),
        (second + 12, &le(9), 136, "node range"),
        (16, &le(48), 16, "program 0 output: expected one of its values, got 48 of 48"),
        (16, &le(u32::MAX), 16, "program 0 output"),
    ];
    for &(at, bytes, offset, text) in cases {
        refused(&sealed(s + at, bytes), "PROGRAMS", offset, text);
    }
    // One node of the second program left over, with its path.
    refused(&sealed(s + second + 12, &le(7)), "PROGRAMS", 144, "program 1 output");
    let mut file = with(s + second + 12, &le(7));
    file.as_mut()[s + second + 16..][..4].copy_from_slice(&le(0));
    reseal(file.as_mut());
    refused(&file, "NODES", 52 * NODE as u64, "node count: expected 52, got 53");
    // No program at all.
    let mut sections = split(sound().as_ref());
    sections[PROGRAMS].clear();
    refused(&build(&sections), "NODES", 0, "node count: expected 0, got 53");
    // An input that is declared twice, or with the axes of another kind, opens and is refused by the shape rules.
    for (at, byte) in [(slot(2), 2), (slot(1), 3), (slot(1) + 1, 2)] {
        let file = sealed(s + at, &[byte]);
        match Packed::new(&file).map(|p| p.verify()) {
            Ok(Err(Error::Shape { path, .. })) => assert!(path.starts_with("denoiser input"), "{path}"),
            Ok(other) => panic!("{other:?}"),
            Err(e) => assert!(at == slot(1) + 1 && e.to_string().contains("node"), "{e}"),
        }
    }
}

#[test]
fn node_faults_are_named() {
    let s = start(NODES);
    // Nodes of the first program.
    let [time, embed, add, patchify, norm1, q, attention, out, norm2, quantize] = [0, 2, 3, 6, 9, 10, 13, 14, 15, 17];
    let none = &[0xff; 4][..];
    let cases: &[(usize, usize, &[u8], u64, &str)] = &[
        (time, 0, &[0], 0, "op: expected 1 to 18, got 0; use a newer aquatint"),
        (time, 0, &[19], 0, "op: expected 1 to 18, got 19; use a newer aquatint"),
        (time, 0, &[255], 0, "op"),
        (time, 1, &[2], 0, "unused fields: expected neutral values"),
        (out, 1, &[3], 0, "unused fields"),
        (q, 2, &[5], 2, "activation: expected a known activation, got 5"),
        (q, 2, &[255], 2, "activation"),
        (add, 2, &[1], 0, "unused fields"),
        (q, 3, &[8], 0, "unused fields"),
        (quantize, 3, &[0], 3, "quantize bits: expected 6 or 8, got 0"),
        (norm1, 3, &[0], 0, ""),
        (norm1, 4, &[2], 4, "quantize grain: expected 0 or 1, got 2"),
        (q, 4, &[1], 0, "unused fields"),
        (norm1, 5, &[3], 5, "quantize range: expected 0, 1 or 2, got 3"),
        (norm1, 5, &[1], 28, "tensor: expected below 54, got 4294967295"),
        (norm2, 5, &[0], 0, "unused fields"),
        (q, 5, &[1], 0, "unused fields"),
        (q, 6, &[1], 0, "unused fields"),
        (q, 7, &[1], 0, "unused fields"),
        (norm1, 8, &le(0), 0, "unused fields"),
        (norm2, 8, &le(54), 28, "tensor: expected below 54, got 54"),
        (norm2, 8, none, 28, "tensor"),
        (time, 16, &le(3), 16, "operand: expected a value below 3, got 3"),
        (time, 16, none, 16, "operand: expected a value below 3, got 4294967295"),
        (add, 20, &le(6), 16, "operand: expected a value below 6, got 6"),
        (add, 20, &le(47), 16, "operand"),
        (add, 20, none, 16, "operand"),
        (add, 24, &le(0), 0, "unused fields"),
        (attention, 24, &le(16), 16, "operand: expected a value below 16, got 16"),
        (out, 20, &le(17), 16, "operand"),
        (q, 28, &le(54), 28, "tensor: expected below 54, got 54"),
        (q, 28, none, 28, "tensor"),
        (q, 32, &le(54), 28, "tensor"),
        (embed, 28, none, 28, "tensor"),
        (embed, 32, &le(0), 0, "unused fields"),
        (add, 28, &le(0), 0, "unused fields"),
        (add, 36, &le(1), 0, "unused fields"),
        (q, 36, &le(1), 0, "unused fields"),
        (time, 40, &le(2), 0, "unused fields"),
        (add, 44, &le(1), 0, "unused fields"),
        (attention, 48, &le(1), 0, "unused fields"),
        (attention, 40, &le(8), 0, "unused fields"),
        (attention, 40, &le(u32::MAX), 0, "unused fields"),
        // A linear layer without gate and residual is as good a gated one; one with them is not.
        (q, 0, &[15], 0, ""),
        (out, 0, &[15], 0, "unused fields"),
        (patchify, 0, &[17], 36, "resampling: expected 0 or 1, got 2"),
        (out, 0, &[16], 0, "unused fields"),
        (embed, 0, &[16], 0, ""),
        (embed, 0, &[18], 0, "unused fields"),
        (add, 47, &[0x80], 0, "unused fields"),
        (add, 52, &le(1), 0, "unused fields"),
        (add, 56, &[1], 0, "unused fields"),
        (add, 79, &[1], 0, "unused fields"),
    ];
    for &(node, field, bytes, offset, text) in cases {
        let file = sealed(s + node * NODE + field, bytes);
        if text.is_empty() {
            // A norm that does not quantize has neutral fields for it, for one: another sound structure.
            Packed::new(&file).expect("sound");
            continue;
        }
        refused(&file, "NODES", (node * NODE) as u64 + offset, &format!("node {node} {text}"));
    }
    for len in [0, 256, u32::MAX] {
        let (section, _, message) = fault(Packed::new(&sealed(s + 12, &le(len))), "path");
        assert!(section == "STRINGS" && message.contains("name: expected 1 to 255 bytes"), "{message}");
    }
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

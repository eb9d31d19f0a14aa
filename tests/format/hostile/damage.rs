//! Damage at every place: cuts, additions, flips, noise, and numbers that weights must not have.

use super::*;

#[test]
fn the_base_address_must_be_aligned() {
    let file = sound();
    let mut padded = vec![0; 64];
    padded.extend_from_slice(file.as_ref());
    for shift in 1..=64 {
        let mut moved = AlignedBytes::new(&padded);
        let len = file.as_ref().len();
        moved.as_mut()[shift..shift + len].copy_from_slice(file.as_ref());
        let view = View(&moved.as_ref()[shift..shift + len]);
        if shift == 64 {
            Packed::new(view).expect("aligned").verify().expect("aligned");
        } else {
            let (section, offset, message) = fault(Packed::new(view), "shifted");
            assert_eq!((section, offset), ("header", 0));
            assert!(message.contains("address in memory: expected a multiple of 64"), "{message}");
        }
    }
}

#[test]
fn no_truncation_opens() {
    let file = sound();
    let mut lying = sound();
    for len in 0..file.as_ref().len() {
        let (section, _, message) = fault(Packed::new(View(&file.as_ref()[..len])), "cut");
        assert!(section == "header" && message.contains("file size"), "{len}: {message}");
        // The same with a header that tells the new size, and a right root hash.
        lying.as_mut()[24..32].copy_from_slice(&(len as u64).to_le_bytes());
        reseal_root(lying.as_mut());
        let (section, _, message) = fault(Packed::new(View(&lying.as_ref()[..len])), "cut");
        let told = ["file size", "section size", "section offset"].iter().any(|what| message.contains(what));
        assert!(section == "header" && told, "{len}: {message}");
    }
}

#[test]
fn appended_bytes_are_refused() {
    for more in [1, 63, 64, 4095, 4096, 4097] {
        let mut bytes = sound().as_ref().to_vec();
        bytes.resize(bytes.len() + more, 0);
        refused(&AlignedBytes::new(&bytes), "header", 24, "the file is cut short or has been appended to");
        let len = bytes.len() as u64;
        bytes[24..32].copy_from_slice(&len.to_le_bytes());
        reseal_root(&mut bytes);
        refused(&AlignedBytes::new(&bytes), "header", 24, "the end of the last section");
    }
}

#[test]
fn damaged_weights_are_found_by_verify_alone() {
    let (at, len) = sections(sound().as_ref())[DATA];
    for i in (0..len).step_by(997) {
        let at = (at + i) as usize;
        let flipped = sound().as_ref()[at] ^ 1;
        unverified(&with(at, &[flipped]), "DATA", 0, "the file is damaged");
    }
}

#[test]
fn padding_is_zero() {
    let file = sound();
    let table = sections(file.as_ref());
    let mut end = HEAD as u64;
    for (at, len) in table {
        for i in [end, at - 1] {
            unverified(&with(i as usize, &[1]), "padding", i, "byte between sections: expected 0, got 1");
        }
        end = at + len;
    }
    let packed = Packed::new(&file).expect("sound");
    let mut gaps = 0;
    for pair in packed.tensors().windows(2) {
        let (end, next) = (pair[0].offset + pair[0].bytes, pair[1].offset);
        if end < next {
            gaps += 1;
            for i in [end, next - 1] {
                unverified(&sealed(4096 + i, &[9]), "DATA", i as u64, "byte between tensors: expected 0, got 9");
            }
        }
    }
    assert!(gaps > 10, "{gaps}");
}

#[test]
fn numbers_are_finite_and_sums_are_right() {
    let file = sound();
    let packed = Packed::new(&file).expect("sound");
    let nan = f32::NAN.to_le_bytes();
    let mut tried = 0;
    for info in packed.tensors() {
        let at = 4096 + info.offset;
        let mut cases: Vec<(usize, &[u8], &str)> = Vec::new();
        match info.layout() {
            None if info.ty().f32 => cases.push((info.bytes - 4, &nan, "finite numbers")),
            None => cases.push((info.bytes - 2, &[0x00, 0xfc], "finite numbers")),
            Some(layout) => {
                let blobs = layout.blobs();
                cases.push((blobs.scale.start, &nan, "finite numbers"));
                cases.push((blobs.offset.start + 4 * (layout.rows - 1), &[0, 0, 0x80, 0x7f], "finite numbers"));
                if layout.rows % 16 != 0 {
                    cases.push((blobs.scale.start + 4 * layout.rows + 3, &[0x80], "zeros as padding"));
                }
                cases.push(match layout.int8 {
                    true => (blobs.tap_sums.start + 2, &[0x55], "the tap sums of its codes"),
                    false => (blobs.table.start, &[0x01, 0x7e], "finite numbers"),
                });
            }
        }
        for (i, bytes, text) in cases {
            unverified(&sealed(at + i, bytes), "DATA", info.offset as u64, &format!("{}: expected {text}", info.name));
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

/// Flips every bit, and every byte, of some sections; `None` is the header.
fn flip_all(of: &[Option<usize>]) {
    let pristine = sound();
    let mut file = sound();
    let (mut opened, mut refused) = (0, 0);
    for (section, range) in structure().into_iter().filter(|(section, _)| of.contains(section)) {
        for at in range {
            for flip in (0..8).map(|bit| 1u8 << bit).chain([0xff]) {
                file.as_mut()[at] ^= flip;
                assert!(Packed::new(&file).is_err(), "byte {at} ^ {flip:#x} is not seen");
                seal(&mut file, section);
                // Only a flip in the root hash is undone by sealing.
                let same = file.as_ref()[..HEAD] == pristine.as_ref()[..HEAD];
                assert_eq!(same, (32..48).contains(&at), "byte {at} ^ {flip:#x}");
                match survive(&file, || format!("resealed byte {at} ^ {flip:#x}")) {
                    true => opened += 1,
                    false => refused += 1,
                }
                file.as_mut()[..HEAD].copy_from_slice(&pristine.as_ref()[..HEAD]);
                file.as_mut()[at] = pristine.as_ref()[at];
            }
        }
    }
    assert!(file.as_ref() == pristine.as_ref());
    assert!(opened > 100 && refused > 1000, "{opened} opened, {refused} refused");
}

#[test]
fn every_flip_in_header_and_tensors_is_caught_raw_and_survived_resealed() {
    flip_all(&[None, Some(TENSORS)]);
}

#[test]
fn every_flip_in_programs_nodes_and_words_is_caught_raw_and_survived_resealed() {
    flip_all(&[Some(PROGRAMS), Some(NODES), Some(ARGS)]);
}

#[test]
fn every_flip_in_strings_and_meta_is_caught_raw_and_survived_resealed() {
    flip_all(&[Some(STRINGS), Some(META)]);
}

#[test]
fn random_damage_is_survived() {
    let pristine = sound();
    let mut file = sound();
    let mut noise = Noise(7);
    // Lengths, signs, limits and not-a-numbers: values that break arithmetic more often than noise does.
    let words = [0, 1, 2, 3, 0x7f, 0xff, 0x100, 1 << 12, 1 << 16, 1 << 31, u32::MAX, u32::MAX - 1, 0x7f80_0000, 54];
    let areas = structure();
    let (mut opened, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let (section, range) = &areas[noise.below(areas.len())];
        let n = 1 + noise.below(6);
        for _ in 0..n {
            let at = range.start + noise.below(range.len());
            match noise.below(3) {
                0 => file.as_mut()[at] = noise.bits() as u8,
                1 => file.as_mut()[at] ^= 1 << noise.below(8),
                _ => {
                    let at = (at & !3).max(range.start);
                    let len = 4.min(range.end - at);
                    let word = le(words[noise.below(words.len())]);
                    file.as_mut()[at..at + len].copy_from_slice(&word[..len]);
                }
            }
        }
        seal(&mut file, *section);
        match survive(&file, || format!("round {round}, section {section:?}")) {
            true => opened += 1,
            false => refused += 1,
        }
        file.as_mut()[range.clone()].copy_from_slice(&pristine.as_ref()[range.clone()]);
        file.as_mut()[..HEAD].copy_from_slice(&pristine.as_ref()[..HEAD]);
    }
    assert!(opened > ROUNDS / 100 && refused > ROUNDS / 10, "{opened} opened, {refused} refused");
}

/// Beside every single flip, which is swept elsewhere.
const ROUNDS: usize = 50_000;

//! Damaged and hostile checkpoints: whatever the bytes are, reading gives sound tensors or one line that names the fault.
//! It never panics, never hangs, and never allocates more than a small multiple of the file.

use crate::common::{Scratch, fixture};
use packer::source::{pickle, torch};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The error that `bytes` give, or none.
fn error(bytes: &[u8]) -> Option<String> {
    let message = torch::read(bytes, Path::new("x.pt")).err()?.to_string();
    assert!(message.starts_with("x.pt: ") && message.contains("expected") && message.contains("got"), "{message}");
    assert!(message.lines().count() == 1 && message.len() < 700, "{message}");
    Some(message)
}

fn refused(bytes: &[u8], words: &[&str]) {
    let message = error(bytes).unwrap_or_else(|| panic!("read; without {words:?}"));
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
}

/// Reads every tensor too; true if the file was opened.
fn read_all(bytes: &[u8], path: &Path) -> bool {
    let Ok(contents) = torch::read(bytes, path) else { return false };
    for (name, view) in &contents.tensors {
        assert!(view.len() <= bytes.len().max(1 << 20), "{name}: {view:?}");
        let elements = view.gather(bytes);
        assert_eq!(elements.len() * 8, view.len() * view.dtype.bitsize(), "{name}");
    }
    true
}

// ----- making files ----------------------------------------------------------------------------------------------------

/// A little-endian field of a zip record.
fn le(out: &mut Vec<u8>, n: usize, value: u64) {
    out.extend_from_slice(&value.to_le_bytes()[..n]);
}

/// A zip archive of stored entries, with 64-bit records if `wide`.
fn zip(entries: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (at, length) = (out.len() as u64, data.len() as u64);
        for (central, out) in [(false, &mut out), (true, &mut directory)] {
            le(out, 4, if central { 0x0201_4b50 } else { 0x0403_4b50 });
            le(out, if central { 4 } else { 2 }, 0);
            [2, 2, 2, 2, 4].iter().for_each(|n| le(out, *n, 0)); // flags, method, time, date, CRC
            let narrow = |v: u64| if wide { 0xffff_ffff } else { v };
            le(out, 4, narrow(length));
            le(out, 4, narrow(length));
            le(out, 2, name.len() as u64);
            le(out, 2, if wide { 28 } else { 0 });
            if central {
                [2, 2, 2, 4].iter().for_each(|n| le(out, *n, 0)); // comment, disk, attributes
                le(out, 4, narrow(at));
            }
            out.extend_from_slice(name.as_bytes());
            if wide {
                [(2, 1), (2, 24), (8, length), (8, length), (8, at)].iter().for_each(|(n, v)| le(out, *n, *v));
            }
        }
        out.extend_from_slice(data);
    }
    let (start, count, size) = (out.len() as u64, entries.len() as u64, directory.len() as u64);
    out.extend(directory);
    if wide {
        let end = out.len() as u64;
        for (n, v) in [(4, 0x0606_4b50), (8, 44), (4, 0), (4, 0), (4, 0), (8, count), (8, count), (8, size), (8, start)]
        {
            le(&mut out, n, v);
        }
        [(4, 0x0706_4b50), (4, 0), (8, end), (4, 1)].iter().for_each(|(n, v)| le(&mut out, *n, *v));
    }
    let narrow = |v: u64, n: u32| if wide { u64::MAX >> (64 - 8 * n) } else { v };
    for (n, v) in [(4, 0x0605_4b50), (4, 0), (2, narrow(count, 2)), (2, narrow(count, 2)), (4, narrow(size, 4))] {
        le(&mut out, n, v);
    }
    le(&mut out, 4, narrow(start, 4));
    le(&mut out, 2, 0);
    out
}

/// A checkpoint with `object` as its pickle's body and one storage of eight floats.
fn archive(object: &[u8]) -> Vec<u8> {
    let pickle = [b"\x80\x02", object, b"."].concat();
    zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 32]), ("a/version", b"3\n")], false)
}

fn text(s: &str) -> Vec<u8> {
    [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

fn int(n: i64) -> Vec<u8> {
    [b"\x8a\x08", &n.to_le_bytes()[..]].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    [b"(".to_vec(), values.iter().flat_map(|n| int(*n)).collect(), b"t".to_vec()].concat()
}

fn storage(class: &str, key: &str, count: i64) -> Vec<u8> {
    let class = format!("ctorch\n{class}\n").into_bytes();
    [b"(".to_vec(), text("storage"), class, text(key), text("cpu"), int(count), b"tQ".to_vec()].concat()
}

/// A call that rebuilds a tensor of `storage`.
fn rebuild(storage: &[u8], offset: i64, size: &[i64], stride: &[i64], more: &[u8]) -> Vec<u8> {
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", storage, &int(offset), &ints(size), &ints(stride), more, b"tR"].concat()
}

fn tensor(offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    rebuild(&storage("FloatStorage", "0", 8), offset, size, stride, b"")
}

/// A dict of one entry.
fn dict(key: &str, value: &[u8]) -> Vec<u8> {
    [b"}", &text(key)[..], value, b"s"].concat()
}

// ----- tests -----------------------------------------------------------------------------------------------------------

#[test]
fn files_made_here_are_read() {
    let pickle = [b"\x80\x02".to_vec(), dict("w", &tensor(2, &[2, 3], &[3, 1])), b".".to_vec()].concat();
    for wide in [false, true] {
        for root in ["archive", "some name"] {
            let names = ["data.pkl", "data/0", "byteorder", "version"].map(|n| format!("{root}/{n}"));
            let parts = [&pickle[..], &[0; 32], b"little", b"3\n"];
            let entries: Vec<_> = names.iter().map(|n| &n[..]).zip(parts).collect();
            let bytes = zip(&entries, wide);
            let contents = torch::read(&bytes, Path::new("x.pt")).unwrap();
            assert_eq!(contents.tensors[0].1.shape, [2, 3]);
            assert!(read_all(&bytes, Path::new("x.pt")));
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for name in ["kinds.zip.pt", "kinds.legacy.pt", "kinds.v4.pt", "lightning.zip.ckpt", "lightning.legacy.ckpt"] {
        let bytes = fs::read(fixture("torchfiles").join(name)).unwrap();
        assert!(read_all(&bytes, Path::new(name)));
        for length in (0..bytes.len()).step_by(7).chain(bytes.len() - 7..bytes.len()) {
            assert!(error(&bytes[..length]).is_some(), "{name} cut to {length} bytes");
        }
        refused(&[&bytes[..], b"x"].concat(), &[]);
    }
}

#[test]
fn a_file_with_any_byte_changed_is_read_or_refused() {
    for name in ["kinds.zip.pt", "kinds.legacy.pt", "lightning.zip.ckpt", "hostile.legacy.pt"] {
        let bytes = fs::read(fixture("torchfiles").join(name)).unwrap();
        let mut changed = bytes.clone();
        let (mut read, mut not) = (0, 0);
        for at in (0..bytes.len()).step_by(3) {
            for value in [bytes[at] ^ 1, bytes[at] ^ 0x80, 0xff, b'(', b'2', b'R', b'Q'] {
                changed[at] = value;
                match read_all(&changed, Path::new("x.pt")) {
                    true => read += 1,
                    false => {
                        assert!(error(&changed).is_some());
                        not += 1;
                    }
                }
            }
            changed[at] = bytes[at];
        }
        assert!(read > 100 && not > 100, "{name}: {read} read, {not} refused");
    }
}

#[test]
fn code_is_named_and_never_run() {
    let target = Scratch::new("torch-code");
    let file = target.path("pwned");
    let command = text(&format!("touch {}", file.display()));
    let system = [b"cos\nsystem\n", &command[..], b"\x85R"].concat();
    let newer = [text("os"), text("system"), b"\x93".to_vec(), command.clone(), b"\x85R".to_vec()].concat();
    let built = [&system[..], b"}b"].concat();
    let object = [b"cos\nsystem\n", &command[..], b"\x85\x81"].concat();
    for evil in [&system, &newer, &built, &object] {
        refused(&archive(evil), &["tensors", "object os.system"]);
        refused(&archive(&dict("a", evil)), &["tensors", "os.system at a"]);
        // Nothing below it can be reached, whether it is an argument, an attribute or an element.
        let tensor = tensor(0, &[1], &[1]);
        refused(&archive(&[b"cos\nsystem\n", &tensor[..], b"\x85R"].concat()), &["os.system"]);
        refused(&archive(&[&evil[..], &dict("w", &tensor), b"b"].concat()), &["os.system"]);
        refused(&archive(&[&evil[..], &text("w"), &tensor, b"s"].concat()), &["os.system"]);
        // A function of the allow-list is not trusted once something was put into its result.
        refused(&archive(&[&tensor[..], b"}b"].concat()), &["_rebuild_tensor_v2"]);
        // Beside it, tensors are read.
        let beside = [&dict("a", evil)[..], &text("w"), &tensor, b"s"].concat();
        assert!(read_all(&archive(&beside), Path::new("x.pt")));
    }
    for (op, name) in [(b'i', "INST"), (b'o', "OBJ"), (b'P', "PERSID"), (0x82, "EXT1"), (0x97, "NEXT_BUFFER")] {
        refused(&archive(&[b"(", &[op][..]].concat()), &["data.pkl", "byte 3", "opcode", name]);
    }
    for (bad, word) in [(b"cos\n", "name"), (b"NN\x93.", "STACK_GLOBAL"), (b"NNR.", "a tuple"), (b"NNb.", "BUILD")] {
        refused(&archive(bad), &["data.pkl", word]);
    }
    refused(&archive(&[b"c", &[b'x'; 300][..], b"\n"].concat()), &["name", "at most 256"]);
    assert!(!file.exists());
}

#[test]
fn tensors_stay_inside_their_storage() {
    for (offset, size, stride) in [
        (0, &[9][..], &[1][..]),
        (8, &[1], &[1]),
        (1, &[2, 4], &[4, 1]),
        (0, &[2], &[8]),
        (i64::MAX, &[1], &[1]),
        (0, &[2], &[i64::MAX]),
        (1, &[3, 3], &[i64::MAX, i64::MAX]),
        (0, &[i64::MAX, i64::MAX], &[0, 0]),
        (9, &[0], &[1]),
    ] {
        refused(&archive(&dict("w", &tensor(offset, size, stride))), &["byte", "w: tensor", "storage of 8"]);
    }
    for (offset, size, stride) in [(-1, [1], [1]), (0, [-1], [1]), (7, [2], [-1]), (i64::MIN, [1], [1])] {
        refused(&archive(&dict("w", &tensor(offset, &size, &stride))), &["no negative offset, size or stride"]);
    }
    refused(&archive(&tensor(0, &[2, 2], &[1])), &["as many strides as sizes"]);
    refused(&archive(&tensor(0, &[1; 65], &[1; 65])), &["whole numbers"]);
    refused(&archive(&tensor(0, &[1 << 40], &[0])), &["at most 1048576 elements"]);
    assert!(read_all(&archive(&dict("w", &tensor(0, &[1 << 20], &[0]))), Path::new("x.pt")));
    assert!(read_all(&archive(&dict("w", &tensor(8, &[0, i64::MAX], &[i64::MAX, 1]))), Path::new("x.pt")));
    assert!(read_all(&archive(&dict("w", &tensor(7, &[1], &[i64::MAX]))), Path::new("x.pt")));
}

#[test]
fn storages_are_those_of_the_archive() {
    let with = |storage: &[u8]| archive(&dict("w", &rebuild(storage, 0, &[1], &[1], b"")));
    refused(&with(&storage("FloatStorage", "1", 8)), &["data/1", "no such entry"]);
    refused(&with(&storage("FloatStorage", "0", 9)), &["data/0", "9 elements of 4 bytes", "32 bytes"]);
    refused(&with(&storage("FloatStorage", "0", i64::MAX)), &["data/0", "32 bytes"]);
    refused(&with(&storage("FloatStorage", "0", -8)), &["a length"]);
    refused(&with(&storage("ComplexFloatStorage", "0", 4)), &["torch.FloatStorage", "torch.ComplexFloatStorage"]);
    refused(&with(b"NQ"), &["persistent id"]);
    refused(&with(b"N"), &["a storage"]);
    refused(&with(&[b"(".to_vec(), text("storage"), b"tQ".to_vec()].concat()), &["5 or 6 fields"]);
    let negated =
        rebuild(&storage("FloatStorage", "0", 8), 0, &[1], &[1], &[b"\x89N", &dict("neg", b"\x88")[..]].concat());
    refused(&archive(&negated), &["no metadata"]);
    refused(&archive(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), &["0 arguments"]);
    refused(&archive(b"ctorch._utils\n_rebuild_parameter\n)R"), &["a tensor as its data"]);
}

#[test]
fn archives_that_lie_are_refused() {
    let pickle = [b"\x80\x02".to_vec(), dict("w", &tensor(0, &[8], &[1])), b".".to_vec()].concat();
    let (data, zeros) = (("a/data.pkl", &pickle[..]), ("a/data/0", &[0; 32][..]));
    refused(&zip(&[data, zeros, zeros], false), &["data/0", "every name once"]);
    refused(&zip(&[data, zeros, ("b/data.pkl", &pickle)], false), &["one data.pkl", "several"]);
    refused(&zip(&[zeros, ("readme", b"hi")], false), &["data.pkl", "another zip archive"]);
    refused(&zip(&[data, zeros, ("a/constants.pkl", b"")], false), &["TorchScript", "state_dict()"]);
    refused(&zip(&[data, zeros, ("a/byteorder", b"big")], false), &["byteorder", "little", "big"]);
    refused(&zip(&[("a/data.pkl", &[&pickle[..], b"x"].concat()), zeros], false), &["no further bytes"]);

    for wide in [false, true] {
        let sound = zip(&[data, zeros], wide);
        let find = |bytes: &[u8]| sound.windows(bytes.len()).rposition(|w| w == bytes).unwrap();
        let (central, end) = (find(b"PK\x01\x02"), find(b"PK\x05\x06"));
        let change = |at: usize, bytes: &[u8]| {
            let mut changed = sound.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            changed
        };
        refused(&change(central + 8, &[1]), &["data/0", "encrypt"]);
        refused(&change(central + 10, &[8]), &["data/0", "stored entries", "method 8"]);
        refused(&change(central + 46, &[0xff]), &["UTF-8"]);
        refused(&change(central + 46, b"b"), &["the same name"]);
        refused(&change(end + 4, &[1]), if wide { &["x.pt"] } else { &["in one file"] }.as_ref());
        if wide {
            // Sizes and offset in the extra field, and the zip64 end.
            let extra = central + 46 + "a/data/0".len() + 4;
            refused(&change(extra, &[0xff; 8]), &["stored bytes"]);
            refused(&change(extra, &[0xff; 16]), &["before the directory"]);
            refused(&change(extra + 16, &[0xff; 8]), &["an entry's header"]);
            refused(&change(extra - 4, &[2]), &["zip64 field"]);
            let end_64 = find(b"PK\x06\x06");
            refused(&change(end_64 + 24, &[0xff; 16]), &["an entry of the directory"]);
            refused(&change(end_64 + 40, &[0xff; 8]), &["a directory before"]);
            refused(&change(end_64 + 48, &[0xff; 8]), &["a directory before"]);
            refused(&change(end + 10, &[3, 0]), &["in the zip64 record too"]);
        } else {
            refused(&change(central + 24, &[33]), &["33 stored bytes", "32"]);
            refused(&change(central + 42, &[0, 0]), &["the same name"]);
            refused(&change(central + 28, &[0xff, 0xff]), &["inside the directory"]);
            refused(&change(end + 8, &[3, 0, 3, 0]), &["an entry of the directory"]);
            refused(&change(end + 8, &[1, 0, 1, 0]), &["1 entries to the end"]);
            refused(&change(end + 12, &[0xff; 4]), &["a directory before"]);
            refused(&change(end + 16, &[0xff; 4]), &["a directory before"]);
            refused(&change(end + 20, &[1]), &["a directory at its end"]);
            let overlap = sound[..central].windows(4).rposition(|w| w == b"PK\x03\x04").unwrap();
            // The second entry begins inside the first one's contents, where a copy of its header lies.
            let mut inner = pickle.clone();
            inner.extend_from_slice(&sound[overlap..overlap + 38]);
            let mut nested = zip(&[("a/data.pkl", &[&inner[..], &[0; 64]].concat()), zeros], false);
            let inside = nested.windows(4).enumerate().filter(|(_, w)| w == b"PK\x03\x04").nth(1).unwrap().0;
            let field = nested.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap() + 42;
            nested[field..field + 4].copy_from_slice(&(inside as u32).to_le_bytes());
            refused(&nested, &["data/0", "bytes of its own", "a/data.pkl"]);
        }
    }
}

#[test]
fn legacy_files_that_lie_are_refused() {
    let sound = fs::read(fixture("torchfiles/hostile.legacy.pt")).unwrap();
    assert!(read_all(&sound, Path::new("x.pt")));
    let change = |from: &[u8], to: &[u8]| {
        let at = sound.windows(from.len()).position(|w| w == from).unwrap();
        [&sound[..at], to, &sound[at + from.len()..]].concat()
    };
    refused(&change(b"M\xe9\x03", b"M\xea\x03"), &["version 1001", "1002"]);
    refused(&change(b"little_endian", b"little_endiam"), &["little_endian: True"]);
    let length = sound.len();
    let (head, floats) = sound.split_at(length - 16);
    refused(&[head, &u64::MAX.to_le_bytes(), &floats[8..]].concat(), &["length of a storage", "2 elements"]);
    refused(&[&sound[..], &[0]].concat(), &["no further bytes", "1 bytes"]);
    refused(&sound[..length - 1], &["2 elements of 4 bytes", "7 bytes to the end"]);
}

/// Bytes of address space that this process has ever had at once.
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// In a process of its own: a peak is that of all that its process does.
#[test]
fn bombs_cost_no_more_than_their_bytes() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", "torch_hostile::bombs", "--ignored", "--nocapture"]).output().unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

#[test]
#[ignore = "run by bombs_cost_no_more_than_their_bytes"]
fn bombs() {
    let (start, before) = (Instant::now(), peak());
    let tensor = tensor(0, &[8], &[1]);
    // A dict that holds itself, once and twice.
    let cycle = [b"}q\x00".to_vec(), text("a"), b"h\x00s".to_vec()].concat();
    refused(&archive(&cycle), &["dicts and lists"]);
    let twice = [&cycle[..], &text("b"), b"h\x00s", &text("w"), &tensor, b"s"].concat();
    refused(&archive(&twice), &["dicts and lists"]);
    // 2^60 paths to one tensor.
    let mut paths = tensor.clone();
    (0..60).for_each(|_| paths.extend(b"2\x86"));
    refused(&archive(&paths), &["over and over"]);
    // Twenty thousand names for a dict of as many tensors.
    let mut wide = b"}q\x00(".to_vec();
    (0..20_000).for_each(|n| wide.extend([int(n), tensor.clone()].concat()));
    wide.extend(b"u0}(");
    (0..20_000).for_each(|n| wide.extend([&int(n)[..], b"h\x00"].concat()));
    wide.push(b'u');
    refused(&archive(&wide), &["over and over"]);
    // A key of a megabyte, over and over; as a dict's, and as a storage's.
    let key = [text(&"k".repeat(1 << 20)), b"q\x01".to_vec()].concat();
    let itself = [b"}q\x00", &key[..], b"h\x00s"].concat();
    refused(&archive(&itself), &["dicts and lists"]);
    let often = [b"}", &key[..], b"Ns(", &b"h\x01N".repeat(300_000), b"u"].concat();
    refused(&archive(&often), &["tensors"]);
    let stored = [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &key, b"NK\x08tq\x02"].concat();
    refused(&archive(&[b"(", &stored[..], &b"h\x02Q".repeat(300_000), b"t"].concat()), &["a key of at most 64"]);
    refused(&archive(&dict(&"k".repeat(2000), &tensor)), &["name", "1024 bytes"]);
    // An OrderedDict of pairs, as Python 2 writes it, made many times; and once.
    let mut pairs = b"ccollections\nOrderedDict\nq\x010(".to_vec();
    (0..5000).for_each(|n| pairs.extend([int(n), b"N\x86".to_vec()].concat()));
    pairs.extend(b"lq\x000");
    refused(&archive(&[&pairs[..], b"(", &b"h\x01h\x00\x85R".repeat(50_000), b"t"].concat()), &["over and over"]);
    refused(&archive(&[&pairs[..], b"h\x01h\x00\x85R"].concat()), &["tensors"]);
    let pair = [b"ccollections\nOrderedDict\n(", &text("w")[..], &tensor, b"\x86l\x85R"].concat();
    assert!(read_all(&archive(&pair), Path::new("x.pt")));
    // And with the attributes that a state_dict() has beside its entries.
    let told = [&pair[..], b"}", &text("_metadata"), b"}sb"].concat();
    assert!(read_all(&archive(&told), Path::new("x.pt")));
    // Nesting, of marks and of values.
    refused(&archive(&b"(".repeat(pickle::MAX_DEPTH + 1)), &["nesting"]);
    let deep = [b"N".to_vec(), b"\x85".repeat(1_000_000)].concat();
    refused(&archive(&deep), &["at most 64 dicts and lists"]);
    let parameters = [tensor.clone(), b"\x85".to_vec()].concat();
    let call = b"ctorch._utils\n_rebuild_parameter\n";
    let nested = [&call.repeat(50_000), &parameters[..], &b"R\x85".repeat(49_999), b"R"].concat();
    refused(&archive(&nested), &["a tensor as its data"]);
    // Counts without contents.
    for op in [
        &b"X\xff\xff\xff\xff"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        refused(&archive(op), &["data.pkl", "argument"]);
    }
    refused(&archive(b"]r\xff\xff\xff\xffj\xfe\xff\xff\xff"), &["memo"]);
    refused(&archive(&b"]".repeat(pickle::MAX_VALUES + 1)), &["at most"]);
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    // The largest has 4 million values in 4 MB.
    if let (Some(before), Some(after)) = (before, peak()) {
        assert!(after - before < 1 << 30, "{} bytes more", after - before);
    }
}

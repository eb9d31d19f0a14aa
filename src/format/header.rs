//! The header and the section table.

use super::{MAGIC, SECTION_ALIGN, VERSION};
use crate::error::{Error, Result};
use crate::program::numbered;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::*};

/// The first 64 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`]; checked when opened.
    pub magic: [u8; 8],
    /// [`VERSION`]; checked when opened.
    pub version: U32,
    /// Number of section records that follow; checked when opened.
    pub n_sections: U32,
    /// Features a reader must know; no bit is defined yet, so any set bit is refused.
    pub required_features: U64,
    /// Size of the whole file; checked against the bytes at hand.
    pub file_bytes: U64,
    /// xxh3-128 of this header, with this field zero, and the section table; checked when opened.
    pub root_hash: [u8; 16],
    /// Zero; checked.
    pub reserved: [u8; 16],
}

/// One entry of the section table.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SectionRecord {
    /// A [`SectionKind`] as a number; ascending over the table.
    pub kind: U32,
    /// Zero; checked.
    pub reserved: U32,
    /// First byte, from the start of the file; exactly where the section before ends, rounded up to 4096.
    pub offset: U64,
    /// Bytes without padding.
    pub bytes: U64,
    /// xxh3-128 of the section's bytes.
    pub hash: [u8; 16],
    /// Zero; checked.
    pub reserved2: U64,
}

const _: () = assert!(size_of::<Header>() == 64);
const _: () = assert!(size_of::<SectionRecord>() == 48);

numbered! {
    "Sections"
    /// What a section holds. Every file has each of them exactly once, in this order.
    #[derive(PartialOrd, Ord)]
    pub enum SectionKind {
        /// The elements of all tensors.
        Data = 1 "DATA",
        /// Tensor records.
        Tensors = 2 "TENSORS",
        /// Program records.
        Programs = 3 "PROGRAMS",
        /// Node records.
        Nodes = 4 "NODES",
        /// Words of inputs and ops.
        Args = 5 "ARGS",
        /// Names and module paths.
        Strings = 6 "STRINGS",
        /// JSON.
        Meta = 7 "META",
    }
}

/// How many sections a file has.
pub const N_SECTIONS: usize = SectionKind::ALL.len();
const TABLE_BYTES: usize = N_SECTIONS * size_of::<SectionRecord>();
/// Bytes of header and section table together.
pub const HEAD_BYTES: usize = size_of::<Header>() + TABLE_BYTES;

/// `n` rounded up to the next section boundary, if that fits in 64 bits.
pub fn align_section(n: u64) -> Option<u64> {
    n.checked_next_multiple_of(SECTION_ALIGN)
}

/// Makes the header and section table of a file whose sections have the given offsets, sizes and hashes.
pub fn encode(sections: &[(Range<u64>, u128); N_SECTIONS]) -> [u8; HEAD_BYTES] {
    let mut table = Vec::with_capacity(TABLE_BYTES);
    for (kind, (range, hash)) in SectionKind::ALL.into_iter().zip(sections) {
        let record = SectionRecord {
            kind: (kind as u32).into(),
            reserved: 0.into(),
            offset: range.start.into(),
            bytes: (range.end - range.start).into(),
            hash: hash.to_le_bytes(),
            reserved2: 0.into(),
        };
        table.extend_from_slice(record.as_bytes());
    }
    let header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        n_sections: (sections.len() as u32).into(),
        required_features: 0.into(),
        file_bytes: sections[N_SECTIONS - 1].0.end.into(),
        root_hash: [0; 16],
        reserved: [0; 16],
    };
    let mut head = [0; HEAD_BYTES];
    head[..64].copy_from_slice(header.as_bytes());
    head[64..].copy_from_slice(&table);
    seal(&mut head);
    head
}

/// Writes the root hash of `head` into it.
pub fn seal(head: &mut [u8; HEAD_BYTES]) {
    head[32..48].fill(0);
    let hash = xxh3_128(head).to_le_bytes();
    head[32..48].copy_from_slice(&hash);
}

/// Byte ranges and hashes of the sections, and the root hash; everything checked.
pub struct Sections {
    /// In the order of [`SectionKind::ALL`].
    pub ranges: [Range<usize>; N_SECTIONS],
    /// Likewise.
    pub hashes: [u128; N_SECTIONS],
    /// Names the whole file.
    pub root_hash: u128,
}

/// Reads the header and section table of `file`, trusting nothing.
pub fn decode(file: &[u8]) -> Result<Sections> {
    let err = |offset: usize, what: &str, expected: String, got: String| {
        Err(Error::format("header", offset as u64, what, expected, got))
    };
    let Some((header, _)) = file.split_at_checked(64) else {
        return err(0, "file size", format!("at least {HEAD_BYTES} bytes"), format!("{} bytes", file.len()));
    };
    let Ok(header) = Header::read_from_bytes(header) else {
        return err(0, "file size", "64 bytes of header".into(), "fewer".into());
    };
    if header.magic != MAGIC {
        return err(0, "magic", "an .aqt file".into(), format!("{:02x?}", header.magic));
    }
    let version = header.version.get();
    if version != VERSION {
        let remedy =
            if version > VERSION { "use a newer aquatint" } else { "pack the model again with this version's packer" };
        return err(8, "version", format!("{VERSION}"), format!("{version}; {remedy}"));
    }
    if header.required_features.get() != 0 {
        let bits = header.required_features.get();
        return err(16, "required features", "none".into(), format!("{bits:#x}; use a newer aquatint"));
    }
    if header.n_sections.get() as usize != N_SECTIONS {
        return err(12, "section count", N_SECTIONS.to_string(), header.n_sections.to_string());
    }
    if header.file_bytes.get() != file.len() as u64 {
        let remedy = "the file is cut short or has been appended to; copy or pack it again";
        return err(24, "file size", format!("{} bytes", header.file_bytes), format!("{} bytes; {remedy}", file.len()));
    }
    if header.reserved != [0; 16] {
        return err(48, "reserved", "zeros".into(), format!("{:02x?}", header.reserved));
    }
    let Some(head) = file.first_chunk::<HEAD_BYTES>() else {
        return err(64, "file size", format!("at least {HEAD_BYTES} bytes"), format!("{} bytes", file.len()));
    };
    let mut sealed = *head;
    seal(&mut sealed);
    if sealed[32..48] != header.root_hash {
        return err(32, "root hash", hex(&sealed[32..48]), format!("{}; the file is damaged", hex(&header.root_hash)));
    }

    let mut ranges: [Range<usize>; N_SECTIONS] = Default::default();
    let mut hashes = [0; N_SECTIONS];
    let mut end = HEAD_BYTES as u64;
    for (i, kind) in SectionKind::ALL.into_iter().enumerate() {
        let at = 64 + i * size_of::<SectionRecord>();
        let bytes = &head[at..at + size_of::<SectionRecord>()];
        let Ok(record) = SectionRecord::read_from_bytes(bytes) else {
            return err(at, "section record", "48 bytes".into(), "fewer".into());
        };
        if record.kind.get() != kind as u32 {
            return err(at, "section kind", format!("{} ({})", kind as u32, kind.name()), record.kind.to_string());
        }
        if record.reserved.get() != 0 || record.reserved2.get() != 0 {
            return err(at + 4, "reserved", "zeros".into(), "other bytes".into());
        }
        let start = align_section(end);
        if start != Some(record.offset.get()) {
            return err(at + 8, "section offset", format!("{start:?}"), record.offset.to_string());
        }
        end = match record.offset.get().checked_add(record.bytes.get()) {
            Some(end) if end <= file.len() as u64 => end,
            _ => {
                let got = format!("{} bytes from {}", record.bytes, record.offset);
                return err(at + 16, "section size", format!("to end within {} bytes", file.len()), got);
            }
        };
        ranges[i] = record.offset.get() as usize..end as usize;
        hashes[i] = u128::from_le_bytes(record.hash);
    }
    if end != file.len() as u64 {
        return err(24, "file size", format!("{end} bytes, the end of the last section"), format!("{}", file.len()));
    }
    Ok(Sections { ranges, hashes, root_hash: u128::from_le_bytes(header.root_hash) })
}

/// Lower-case hexadecimal, most significant byte first (hashes are stored little-endian).
fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}

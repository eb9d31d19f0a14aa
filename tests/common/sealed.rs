//! A packed file taken apart into its sections, to be changed and sealed again: all hashes are made right, so that only
//! the change itself can be found. Made from the constants and records of the library, whatever sections it has.

use super::tiny::AlignedBytes;
use aquatint::raw::format::{Header, SECTION_ALIGN, SectionKind, SectionRecord};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::{FromBytes, IntoBytes};

/// The sections of a file, and its header.
#[derive(Clone)]
pub struct Sealed {
    header: Header,
    sections: Vec<(SectionKind, Vec<u8>)>,
}

impl Sealed {
    /// The sections of a sound file.
    ///
    /// # Panics
    /// If it is none.
    pub fn of(file: &[u8]) -> Self {
        let (header, mut rest) = Header::read_from_prefix(file).expect("a header");
        let mut sections = Vec::new();
        for kind in SectionKind::ALL {
            let (record, after) = SectionRecord::read_from_prefix(rest).expect("a section record");
            rest = after;
            assert_eq!(record.kind.get(), kind as u32);
            let (at, len) = (record.offset.get() as usize, record.bytes.get() as usize);
            sections.push((kind, file[at..at + len].to_vec()));
        }
        Sealed { header, sections }
    }

    /// The bytes of a section.
    pub fn section(&self, kind: SectionKind) -> &[u8] {
        &self.sections.iter().find(|(k, _)| *k == kind).expect("every file has every section").1
    }

    /// The same, to be changed; they may become more or fewer.
    pub fn section_mut(&mut self, kind: SectionKind) -> &mut Vec<u8> {
        &mut self.sections.iter_mut().find(|(k, _)| *k == kind).expect("every file has every section").1
    }

    /// META; none if its bytes are no JSON.
    pub fn meta(&self) -> Option<Value> {
        serde_json::from_slice(self.section(SectionKind::Meta)).ok()
    }

    /// Replaces META.
    pub fn set_meta(&mut self, meta: &Value) {
        *self.section_mut(SectionKind::Meta) = serde_json::to_vec(meta).expect("JSON is written to memory");
    }

    /// The file: sections one after another, with a section table, hashes and a header that agree with them.
    pub fn seal(&self) -> AlignedBytes {
        let align = SECTION_ALIGN as usize;
        let head = size_of::<Header>() + self.sections.len() * size_of::<SectionRecord>();
        let ends = self.sections.iter().fold(head, |end, (_, bytes)| end.next_multiple_of(align) + bytes.len());
        let mut file = AlignedBytes::zeros(ends);
        let bytes = file.as_mut();
        let mut end = head;
        for (i, (kind, section)) in self.sections.iter().enumerate() {
            let start = end.next_multiple_of(align);
            end = start + section.len();
            bytes[start..end].copy_from_slice(section);
            let record = SectionRecord {
                kind: (*kind as u32).into(),
                reserved: 0.into(),
                offset: (start as u64).into(),
                bytes: (section.len() as u64).into(),
                hash: xxh3_128(section).to_le_bytes(),
                reserved2: 0.into(),
            };
            let at = size_of::<Header>() + i * size_of::<SectionRecord>();
            bytes[at..at + size_of::<SectionRecord>()].copy_from_slice(record.as_bytes());
        }
        let mut header = Header { file_bytes: (ends as u64).into(), root_hash: [0; 16], ..self.header };
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        header.root_hash = xxh3_128(&bytes[..head]).to_le_bytes();
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        file
    }
}

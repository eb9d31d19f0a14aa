//! The file of a shard, and of a batch of an unfinished one: safetensors, the last tensor of which is a hash of all before it.
//!
//! | tensor | | |
//! |---|---|---|
//! | `latents` | F32 | `(n, c, h, w)`, of videos `(n, c, f, h, w)`, as the sampler left them, if the job keeps them |
//! | `images` | U8 | `(n, h, w, c)`, of videos `(n, f, h, w, c)`, if the job keeps them |
//! | `texts` | U8 | how each image was made, as `aquatint run` writes it into a PNG: a JSON string and a line feed each |
//! | `xxh3` | U8 | `(16)`: xxh3-128, high byte first, of all bytes of the file before it |
//!
//! The metadata has one entry, `aquatint_samples`: [`Header`] in JSON. Equal contents are equal bytes.

use crate::error::{Error, Result};
use crate::mmap::{self, FileBytes};
use crate::model::{MAX_SIDE, PICTURE_CHANNELS};
use crate::shard::Shard;
use crate::whole_file::WholeFile;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The entry of the metadata.
const KEY: &str = "aquatint_samples";
/// The version of the format.
pub(super) const FORMAT: u32 = 1;
/// The tensor of the hash, and its bytes.
const HASH: (&str, usize) = ("xxh3", 16);

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// [`FORMAT`].
    pub format: u32,
    /// The job: all that its images depend on, but for the device.
    pub job: BTreeMap<String, String>,
    /// Images of the job.
    pub total: usize,
    /// The shard `[k, n]`.
    pub shard: [usize; 2],
    /// The images in the file, from the first to before the last.
    pub images: [usize; 2],
    /// What computed them: device and instruction set.
    pub device: String,
}

impl Header {
    pub fn range(&self) -> Range<usize> {
        self.images[0]..self.images[1]
    }

    pub fn shard(&self) -> Shard {
        Shard { index: self.shard[0], of: self.shard[1] }
    }
}

/// A tensor of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tensor {
    /// Final latents.
    Latents,
    /// Pictures.
    Images,
    /// How images were made.
    Texts,
}

impl Tensor {
    /// In the order of the file.
    pub(super) const ALL: [Tensor; 3] = [Tensor::Latents, Tensor::Images, Tensor::Texts];

    fn name(self) -> &'static str {
        match self {
            Tensor::Latents => "latents",
            Tensor::Images => "images",
            Tensor::Texts => "texts",
        }
    }

    fn dtype(self) -> (Dtype, &'static str, usize) {
        match self {
            Tensor::Latents => (Dtype::F32, "F32", 4),
            Tensor::Images | Tensor::Texts => (Dtype::U8, "U8", 1),
        }
    }
}

/// The sizes of a file's tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shapes {
    /// Axes of the latents of one image, if there are latents.
    pub latents: Option<Vec<usize>>,
    /// Axes of one image, if there are images.
    pub images: Option<Vec<usize>>,
    /// Bytes of all texts.
    pub texts: usize,
}

impl Shapes {
    /// The axes of a tensor of `n` images, if the file has it.
    pub fn dims(&self, tensor: Tensor, n: usize) -> Option<Vec<usize>> {
        let of = |each: &Option<Vec<usize>>| each.as_ref().map(|each| [&[n], &each[..]].concat());
        match tensor {
            Tensor::Latents => of(&self.latents),
            Tensor::Images => of(&self.images),
            Tensor::Texts => Some(vec![self.texts]),
        }
    }
}

/// A file that is being written.
pub(super) struct Writer {
    path: PathBuf,
    file: WholeFile,
    hash: Xxh3,
    /// Bytes that are still to come before the hash.
    rest: usize,
}

impl Writer {
    /// Begins the file of `header` at `path`, whose tensors follow by [`put`](Self::put) in the order of [`Tensor::ALL`].
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Request`] if it cannot be made.
    pub fn create(path: &Path, header: &Header, shapes: &Shapes) -> Result<Self> {
        let mut tensors = serde_json::Map::new();
        tensors.insert("__metadata__".into(), json!({ KEY: text_of(header)? }));
        let mut end = 0;
        let n = header.range().len();
        let mut add = |name: &str, dtype: &str, dims: Vec<usize>, bytes: usize| {
            let offsets = [end, end + bytes];
            end += bytes;
            tensors.insert(name.into(), json!({ "dtype": dtype, "shape": dims, "data_offsets": offsets }));
        };
        for tensor in Tensor::ALL {
            let (_, dtype, size) = tensor.dtype();
            if let Some(dims) = shapes.dims(tensor, n) {
                let bytes = dims.iter().product::<usize>() * size;
                add(tensor.name(), dtype, dims, bytes);
            }
        }
        add(HASH.0, "U8", vec![HASH.1], HASH.1);
        let mut head = text_of(&tensors)?.into_bytes();
        head.resize(head.len().next_multiple_of(8), b' ');
        let file = WholeFile::create(path)?;
        let rest = 8 + head.len() + end - HASH.1;
        let mut writer = Writer { path: path.to_owned(), file, hash: Xxh3::new(), rest };
        writer.put(&(head.len() as u64).to_le_bytes())?;
        writer.put(&head)?;
        Ok(writer)
    }

    /// The next bytes of the tensors.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full or fails.
    ///
    /// # Panics
    /// If there are more than the sizes say.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.rest = self.rest.checked_sub(bytes.len()).expect("no more bytes than the shapes say");
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Error::Io`] if that fails.
    ///
    /// # Panics
    /// If there were fewer bytes than the sizes say.
    pub fn commit(mut self) -> Result<()> {
        assert_eq!(self.rest, 0, "bytes that the shapes say and nobody put");
        let hash = self.hash.digest128().to_be_bytes();
        self.file.write_all(&hash).map_err(Error::io("write", &self.path))?;
        self.file.commit()
    }
}

/// `value` as JSON.
pub(super) fn text_of(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::request("samples", "values JSON can hold", e))
}

/// The file of a shard or of a part of it, mapped.
pub struct SampleFile {
    path: PathBuf,
    bytes: FileBytes,
    header: Header,
    shapes: Shapes,
    /// Where the bytes of each of [`Tensor::ALL`] are.
    places: [Range<usize>; 3],
}

impl SampleFile {
    /// Opens the file at `path`: its structure is checked, its contents are by [`verify`](Self::verify).
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Request`] if it is not such a file.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = mmap::open(path)?;
        let (header, shapes, places) = read(&bytes).map_err(|got| Self::refuse(path, got))?;
        Ok(SampleFile { path: path.to_owned(), bytes, header, shapes, places })
    }

    fn refuse(path: &Path, got: String) -> Error {
        let expected = "what aquatint sample of this version writes; without the file its images are made anew";
        Error::request(path.display().to_string(), expected, got)
    }

    /// Checks every byte against the hash.
    ///
    /// # Errors
    /// [`Error::Request`] if one was changed.
    pub fn verify(&self) -> Result<()> {
        let (contents, hash) = self.bytes.split_at(self.bytes.len() - HASH.1);
        match xxh3_128(contents).to_be_bytes() == hash {
            true => Ok(()),
            false => Err(Self::refuse(&self.path, "damaged contents".into())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    /// The numbers of its images.
    pub fn range(&self) -> Range<usize> {
        self.header.range()
    }

    /// The bytes of a tensor, of all images; empty if the file has no such tensor.
    pub fn bytes(&self, tensor: Tensor) -> &[u8] {
        &self.bytes[self.places[tensor as usize].clone()]
    }

    /// The axes of one image, `[h, w, c]` or `[f, h, w, c]`, if the file has images.
    pub fn image_dims(&self) -> Option<&[usize]> {
        self.shapes.images.as_deref()
    }

    /// How each image was made, as the text of a PNG.
    ///
    /// # Errors
    /// [`Error::Request`] if it is no text.
    pub fn texts(&self) -> Result<Vec<String>> {
        let lines = self.bytes(Tensor::Texts).split_inclusive(|&byte| byte == b'\n');
        let read = |line: &[u8]| serde_json::from_slice(line);
        lines.map(|line| read(line).map_err(|e| Self::refuse(&self.path, format!("a text: {e}")))).collect()
    }
}

/// What a file says of itself, sizes of its tensors and where they are; or what is wrong with it.
fn read(bytes: &[u8]) -> Result<(Header, Shapes, [Range<usize>; 3]), String> {
    let (head, tensors) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let data = 8 + head;
    let text = tensors.metadata().as_ref().and_then(|texts| texts.get(KEY));
    let text = text.ok_or_else(|| format!("no metadata `{KEY}`"))?;
    let header: Header = serde_json::from_str(text).map_err(|e| format!("metadata `{KEY}`: {e}"))?;
    if header.format != FORMAT {
        return Err(format!("version {}, not {FORMAT}", header.format));
    }
    let ([first, end], [index, of]) = (header.images, header.shard);
    if index >= of || first > end || end > header.total {
        return Err(format!("images {first}:{end} of {} in shard {index}/{of}", header.total));
    }
    let n = end - first;
    let mut shapes = Shapes::default();
    let mut places = [0..0, 0..0, 0..0];
    for (tensor, place) in Tensor::ALL.into_iter().zip(&mut places) {
        let Some(info) = tensors.info(tensor.name()) else { continue };
        let (dtype, ..) = tensor.dtype();
        let [rows, each @ ..] = &info.shape[..] else { return Err(format!("`{}` without axes", tensor.name())) };
        if info.dtype != dtype || (tensor != Tensor::Texts && *rows != n) {
            return Err(format!("`{}` {:?} {:?} of {n} images", tensor.name(), info.dtype, info.shape));
        }
        *place = data + info.data_offsets.0..data + info.data_offsets.1;
        match tensor {
            Tensor::Latents => shapes.latents = Some(each.to_vec()),
            Tensor::Images => shapes.images = Some(each.to_vec()),
            Tensor::Texts => shapes.texts = *rows,
        }
    }
    if let Some(each) = shapes.images.as_deref().filter(|each| !is_picture(each)) {
        return Err(format!("`images` of {each:?}"));
    }
    check_end(&tensors, &shapes)?;
    let texts = bytes[places[Tensor::Texts as usize].clone()].iter().filter(|&&byte| byte == b'\n').count();
    match texts == n {
        true => Ok((header, shapes, places)),
        false => Err(format!("{texts} texts of {n} images")),
    }
}

/// Whether these are axes of pictures or of videos.
fn is_picture(dims: &[usize]) -> bool {
    let [sides @ .., channels] = dims else { return false };
    let fits = |sides: &[usize]| sides.iter().all(|side| (1..=MAX_SIDE).contains(side));
    matches!(sides.len(), 2 | 3) && fits(sides) && PICTURE_CHANNELS.contains(channels)
}

/// Checks that there are no tensors but those that are known, and that the hash ends the file.
fn check_end(tensors: &Metadata, shapes: &Shapes) -> Result<(), String> {
    let known = 2 + usize::from(shapes.latents.is_some()) + usize::from(shapes.images.is_some());
    let names = tensors.tensors().len();
    let hash = tensors.info(HASH.0).filter(|info| info.dtype == Dtype::U8 && info.shape == [HASH.1]);
    let last = hash.is_some_and(|info| info.data_offsets.1 == tensors.data_len());
    match last && names == known {
        true => Ok(()),
        false => Err(format!("{names} tensors, which do not end with `{}`", HASH.0)),
    }
}

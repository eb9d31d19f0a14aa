//! Pictures: from the decoder's values to PNG files, and from files to what runs begin with.
//!
//! Owns rounding to bytes, contact sheets, animations, and the text that image tools read back. Writes PNG, and videos as GIF and
//! WebP; reads PNG, JPEG, WebP and BMP ([`Picture`]).

mod animation;
mod cover;
mod read;
mod resize;

pub use animation::{FRAME_RATES, write_gif, write_webp};
pub use cover::cover;
pub use read::{Picture, ResizeMode};

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek, Write},
    path::Path,
};

use crate::error::{Error, Result};
use crate::model::PICTURE_CHANNELS;
use crate::whole_file;

/// Most bytes of a picture's text: a guard against files that claim to be enormous.
const MOST_TEXT: usize = 1 << 26;

/// An 8-bit picture, rows from the top: grey, RGB or RGBA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    channels: usize,
    bytes: Vec<u8>,
}

impl Image {
    /// The picture `bytes`, `(height, width, channels)`.
    ///
    /// # Panics
    /// If there are not as many bytes, or channels not 1, 3 or 4.
    pub fn new(width: u32, height: u32, channels: usize, bytes: Vec<u8>) -> Self {
        assert!(PICTURE_CHANNELS.contains(&channels), "{channels} channels");
        assert_eq!(width as usize * height as usize * channels, bytes.len(), "{width} x {height} x {channels}");
        Image { width, height, channels, bytes }
    }

    /// A picture with every byte `shade`.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn of_pixels(width: u32, height: u32, channels: usize, shade: u8) -> Self {
        Image::new(width, height, channels, vec![shade; width as usize * height as usize * channels])
    }

    /// Columns.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Channels: 1 is grey, 3 RGB, 4 RGBA.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The bytes, `(height, width, channels)`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The channels of the pixel in column `x` of row `y`.
    ///
    /// # Panics
    /// If there is none.
    pub fn pixel(&self, x: u32, y: u32) -> &[u8] {
        assert!(x < self.width && y < self.height, "pixel {x}, {y} of {} x {}", self.width, self.height);
        &self.bytes[(y as usize * self.width as usize + x as usize) * self.channels..][..self.channels]
    }

    /// Puts `other` here, its corner at column `x` and row `y`, both within; what lies outside is cut off.
    fn paste(&mut self, other: &Image, [x, y]: [u32; 2]) {
        debug_assert_eq!(self.channels, other.channels);
        let len = other.width.min(self.width - x) as usize * self.channels;
        let row = |image: &Image| image.width as usize * image.channels;
        for line in 0..other.height.min(self.height - y) as usize {
            let to = (y as usize + line) * row(self) + x as usize * self.channels;
            self.bytes[to..to + len].copy_from_slice(&other.bytes[line * row(other)..][..len]);
        }
    }
}

/// Pixels between the pictures of a [`grid`].
pub const GAP: u32 = 2;

/// The pictures in `values`, shape (n, h, w, channels), channels last, nominally 0..1; one channel is grey, three are RGB,
/// four RGBA.
///
/// A value v becomes round(255 v), halves to even, after clamping to 0..1: what diffusers' `numpy_to_pil` gives.
///
/// # Errors
/// A request error when the length of `values` is not n h w channels, when a side is 0, for other channels, or when a value is not finite (a
/// black picture would hide an overflow in the model).
pub fn from_nhwc(values: &[f32], n: usize, height: u32, width: u32, channels: usize) -> Result<Vec<Image>> {
    if !PICTURE_CHANNELS.contains(&channels) {
        return Err(Error::request("image channels", "1, 3 or 4", channels));
    }
    let len = (height as usize).checked_mul(width as usize).and_then(|p| p.checked_mul(channels)).unwrap_or(usize::MAX);
    if len == 0 || len.checked_mul(n) != Some(values.len()) {
        let expected = format!("{n} x {height} x {width} x {channels} values, sides above 0");
        return Err(Error::request("image", expected, format!("{} values", values.len())));
    }
    if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::request(
            "image",
            "finite values",
            format!("{} at value {} of picture {}", values[bad], bad % len, bad / len),
        ));
    }
    // `as` saturates, which is the clamp.
    let byte = |&v: &f32| (v * 255.0).round_ties_even() as u8;
    let picture = |values: &[f32]| Image::new(width, height, channels, values.iter().map(byte).collect());
    Ok(values.chunks_exact(len).map(picture).collect())
}

/// One picture with all of `images`, `columns` to a row, on white with [`GAP`] pixels between them. Cells have the size
/// of the largest picture; fewer pictures than columns make a narrower grid.
///
/// # Errors
/// A request error when there is no picture or no column, or when pictures have different channels.
pub fn grid(images: &[Image], columns: usize) -> Result<Image> {
    let columns = columns.min(images.len());
    let (Some(width), Some(height)) = (images.iter().map(|i| i.width()).max(), images.iter().map(|i| i.height()).max())
    else {
        return Err(Error::request("grid", "at least one picture", "none"));
    };
    if columns == 0 {
        return Err(Error::request("grid columns", "at least 1", 0));
    }
    let channels = images[0].channels;
    if let Some(other) = images.iter().find(|image| image.channels != channels) {
        return Err(Error::request("grid", format!("pictures of {channels} channels"), other.channels));
    }
    let side = |cells: usize, size: u32| {
        let pixels = cells as u64 * u64::from(size + GAP) - u64::from(GAP);
        u32::try_from(pixels).map_err(|_| Error::request("grid", "a side below 2^32 pixels", pixels))
    };
    let (full_width, full_height) = (side(columns, width)?, side(images.len().div_ceil(columns), height)?);
    let mut sheet = Image::of_pixels(full_width, full_height, channels, 255);
    for (i, picture) in images.iter().enumerate() {
        let (x, y) = ((i % columns) as u32, (i / columns) as u32);
        sheet.paste(picture, [x * (width + GAP), y * (height + GAP)]);
    }
    Ok(sheet)
}

/// Writes `image` to `path` as PNG with the given (keyword, text) pairs.
///
/// The file appears whole or not at all, replacing a file that is there ([`whole_file`]). Text goes into a tEXt chunk,
/// or into an iTXt chunk when it is not Latin-1.
///
/// # Errors
/// An I/O error that names `path` and the reason; a request error when a keyword or a text cannot stand in a PNG, or
/// `path` is no place for a file.
pub fn write_png(path: impl AsRef<Path>, image: &Image, text: &[(&str, &str)]) -> Result<()> {
    let path = path.as_ref();
    check_text(text)?;
    whole_file::write(path, |file| encode(file, image, text))
}

/// How a picture becomes the bytes of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// PNG, which alone can hold texts here.
    #[default]
    Png,
    /// JPEG of this quality, 1 to 100.
    Jpeg(u8),
    /// WebP without loss.
    Webp,
}

/// The bytes of a file of `image`; in a PNG, with the given (keyword, text) pairs.
///
/// # Errors
/// As [`write_png`]; a request error if the picture has more pixels than the format can hold.
pub fn to_bytes(image: &Image, encoding: Encoding, text: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let wrong = |e: &dyn std::fmt::Display| {
        Error::request("picture", "one that the format can hold", format!("{} x {}: {e}", image.width, image.height))
    };
    if encoding == Encoding::Png {
        check_text(text)?;
        encode(&mut bytes, image, text).map_err(|e| wrong(&e))?;
        return Ok(bytes);
    }
    // JPEG knows no opacity.
    let colour = match image.channels {
        1 => ::image::ExtendedColorType::L8,
        4 => ::image::ExtendedColorType::Rgba8,
        _ => ::image::ExtendedColorType::Rgb8,
    };
    let opaque: Vec<u8>;
    let (pixels, colour) = match (encoding, image.channels) {
        (Encoding::Jpeg(_), 4) => {
            opaque = image.bytes.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
            (&opaque, ::image::ExtendedColorType::Rgb8)
        }
        _ => (&image.bytes, colour),
    };
    let done = match encoding {
        Encoding::Jpeg(quality) => {
            let encoder = ::image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100));
            ::image::ImageEncoder::write_image(encoder, pixels, image.width, image.height, colour)
        }
        _ => {
            let encoder = ::image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
            ::image::ImageEncoder::write_image(encoder, pixels, image.width, image.height, colour)
        }
    };
    done.map_err(|e| wrong(&e))?;
    Ok(bytes)
}

/// Refuses what cannot stand in a PNG.
fn check_text(text: &[(&str, &str)]) -> Result<()> {
    for (keyword, value) in text {
        let fits = (1..=79).contains(&keyword.chars().count()) && latin1(keyword) && !keyword.contains('\0');
        if !fits {
            return Err(Error::request("PNG keyword", "1 to 79 Latin-1 characters", format!("{keyword:?}")));
        }
        if value.contains('\0') {
            return Err(Error::request(format!("PNG text {keyword}"), "text without NUL", format!("{value:?}")));
        }
    }
    Ok(())
}

/// Encodes `image` as PNG into `to`. The `image` crate's own encoder cannot write text.
fn encode(to: &mut impl Write, image: &Image, text: &[(&str, &str)]) -> io::Result<()> {
    let mut encoder = png::Encoder::new(to, image.width, image.height);
    encoder.set_color(match image.channels {
        1 => png::ColorType::Grayscale,
        4 => png::ColorType::Rgba,
        _ => png::ColorType::Rgb,
    });
    encoder.set_depth(png::BitDepth::Eight);
    for &(keyword, value) in text {
        let (keyword, plain) = (keyword.to_string(), latin1(value));
        let added = match plain {
            true => encoder.add_text_chunk(keyword, value.to_string()),
            false => encoder.add_itxt_chunk(keyword, value.to_string()),
        };
        added.map_err(reason)?;
    }
    let mut writer = encoder.write_header().map_err(reason)?;
    writer.write_image_data(&image.bytes).map_err(reason)?;
    writer.finish().map_err(reason)
}

/// The I/O error inside an encoding error, or one that says the same.
fn reason(error: png::EncodingError) -> io::Error {
    match error {
        png::EncodingError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// Whether every character exists in Latin-1, that is, whether a tEXt chunk can hold the text.
fn latin1(text: &str) -> bool {
    text.chars().all(|c| u32::from(c) < 256)
}

/// The text that a PNG has under `keyword`, in a tEXt, zTXt or iTXt chunk before or behind its pixels.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Request`] if it is no PNG or has no such text.
pub fn read_text(path: &Path, keyword: &str) -> Result<String> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    text_of(BufReader::new(file), &path.display().to_string(), keyword)
}

/// [`read_text`] of a PNG's bytes, which errors call `name`.
///
/// # Errors
/// [`Error::Request`] if they are no PNG or have no such text.
pub fn text_of(png: impl BufRead + Seek, name: &str, keyword: &str) -> Result<String> {
    let wrong = |got: String| Error::request(name, format!("a PNG with the text `{keyword}`"), got);
    let limits = png::Limits { bytes: MOST_TEXT };
    let mut reader = png::Decoder::new_with_limits(png, limits).read_info().map_err(|e| wrong(e.to_string()))?;
    let text = |info: &png::Info| -> Option<String> {
        let latin1 =
            info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword).map(|c| c.text.clone());
        let packed = || info.compressed_latin1_text.iter().find(|c| c.keyword == keyword)?.get_text().ok();
        let utf8 = || info.utf8_text.iter().find(|c| c.keyword == keyword)?.get_text().ok();
        latin1.or_else(packed).or_else(utf8)
    };
    if let Some(text) = text(reader.info()) {
        return Ok(text);
    }
    reader.finish().map_err(|e| wrong(e.to_string()))?;
    text(reader.info()).ok_or_else(|| wrong("none".into()))
}

/// The output name for picture `index`: `%d` in `pattern` becomes the index, `%03d` the index with at least three
/// digits, `%%` a percent sign. Without a number in the pattern, picture 0 has the pattern itself and picture k gets
/// `_k` before the extension, so no two pictures share a name.
///
/// # Errors
/// A request error when `pattern` has another `%` sequence.
pub fn numbered(pattern: &str, index: usize) -> Result<String> {
    let wrong = || Error::request("output name", "%d, %03d or %% after which the name goes on", pattern);
    let mut name = String::new();
    let mut numbers = 0;
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('%') {
        name += before;
        let end = after.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (digits, tail) = after.split_at(end);
        if let Some(tail) = tail.strip_prefix('%').filter(|_| digits.is_empty()) {
            name.push('%');
            rest = tail;
            continue;
        }
        // As in C, a width without a leading zero pads with blanks: not wanted in file names.
        let width = match digits.strip_prefix('0') {
            Some(width) => width.parse().ok().filter(|w| *w <= 20).ok_or_else(wrong)?,
            None if digits.is_empty() => 0,
            None => return Err(wrong()),
        };
        rest = tail.strip_prefix('d').ok_or_else(wrong)?;
        name += &format!("{index:0width$}");
        numbers += 1;
    }
    name += rest;
    if numbers == 0 && index > 0 {
        let file_off = name.rfind(['/', '\\']).map_or(0, |i| i + 1);
        let dot = name[file_off..].rfind('.').filter(|&i| i > 0).map_or(name.len(), |i| file_off + i);
        name.insert_str(dot, &format!("_{index}"));
    }
    Ok(name)
}

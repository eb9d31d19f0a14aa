//! Pictures from files, as diffusers' pipelines read them through Pillow.

use super::Image;
use super::resize::{Axis, Filter, resize};
use crate::error::{Error, Result};
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageResult};
use std::io::{BufRead, Cursor, Seek};
use std::path::Path;

/// Most bytes that reading a picture may take: a guard against files that claim to be enormous.
const MOST_BYTES: u64 = 1 << 30;

/// What becomes of a picture whose sides are in another proportion than those it is brought to; `default`, `crop` and
/// `fill` in diffusers' `VaeImageProcessor.resize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResizeMode {
    /// Its proportions change.
    #[default]
    Stretch,
    /// It covers everything, and what hangs over is cut off, on both sides alike.
    Crop,
    /// All of it is there, and its outermost lines are continued to where nothing is.
    Pad,
}

/// A picture as it was read, upright.
#[derive(Clone, Debug)]
pub struct Picture(DynamicImage);

impl Picture {
    /// Reads a PNG, JPEG, WebP or BMP file, whatever it is called, and turns it as its EXIF orientation says, or that of its XMP
    /// where EXIF says nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Request`] if it is no picture of these kinds or too large.
    pub fn read(path: &Path) -> Result<Self> {
        let reader = ::image::ImageReader::open(path).map_err(Error::io("read", path))?;
        let reader = reader.with_guessed_format().map_err(Error::io("read", path))?;
        Picture::decode(reader, &path.display().to_string(), u64::MAX)
    }

    /// [`read`](Self::read) of a file's bytes, which errors call `name`. A picture of more than `most` pixels is refused before
    /// any is decoded.
    ///
    /// # Errors
    /// [`Error::Request`] if they are no picture of these kinds, or too large a one.
    pub fn from_bytes(bytes: &[u8], name: &str, most: u64) -> Result<Self> {
        let reader = ::image::ImageReader::new(Cursor::new(bytes)).with_guessed_format();
        Picture::decode(reader.expect("memory can be read"), name, most)
    }

    fn decode(mut reader: ::image::ImageReader<impl BufRead + Seek>, name: &str, most: u64) -> Result<Self> {
        let mut limits = ::image::Limits::default();
        limits.max_alloc = Some(MOST_BYTES);
        reader.limits(limits);
        let wrong = |e| Error::request(name, "a PNG, JPEG, WebP or BMP picture", e);
        let mut decoder = reader.into_decoder().map_err(wrong)?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > most {
            return Err(Error::request(name, format!("at most {most} pixels"), format!("{width} x {height}")));
        }
        let orientation = orientation(&mut decoder).map_err(wrong)?;
        let mut picture = DynamicImage::from_decoder(decoder).map_err(wrong)?;
        picture.apply_orientation(orientation);
        Ok(Picture(picture))
    }

    /// Height and width.
    pub fn size(&self) -> [usize; 2] {
        [self.0.height() as usize, self.0.width() as usize]
    }

    /// Values `(h, w, channels)` in 0..1 of `size`, height and width, to which the picture is brought with Lanczos'
    /// filter; 1 channel is brightness, 3 are colours, 4 colours and opacity.
    pub fn values(&self, size: [usize; 2], mode: ResizeMode, channels: usize) -> Vec<f32> {
        let image = match channels {
            4 => fit(&self.rgba(), size, mode),
            _ => fit(&self.rgb(), size, mode),
        };
        let image = if channels == 1 { grey(&image) } else { image };
        image.bytes().iter().map(|&v| f32::from(v) / 255.0).collect()
    }

    /// The picture as a mask `(h, w)` of `size`, height and width: 1 where it is at least half as bright as white, else
    /// 0. It is brought to its size before it is told light from dark.
    pub fn mask(&self, size: [usize; 2], mode: ResizeMode) -> Vec<f32> {
        self.values(size, mode, 1).iter().map(|&v| if v >= 0.5 { 1.0 } else { 0.0 }).collect()
    }

    /// White where it is transparent, black where it is opaque: OpenAI's masks as this program's.
    pub fn transparency(&self) -> Picture {
        let opacity = self.0.to_luma_alpha8();
        let clear = opacity.pixels().map(|pixel| 255 - pixel.0[1]).collect();
        let made = ::image::GrayImage::from_raw(self.0.width(), self.0.height(), clear);
        Picture(made.expect("a value for each pixel").into())
    }

    /// Colours, without opacity.
    fn rgb(&self) -> Image {
        let bytes = self.bytes().to_rgb8().into_raw();
        Image::new(self.0.width(), self.0.height(), 3, bytes)
    }

    /// Colours and opacity.
    fn rgba(&self) -> Image {
        let bytes = self.bytes().to_rgba8().into_raw();
        Image::new(self.0.width(), self.0.height(), 4, bytes)
    }

    /// The picture with 8 bits per channel. Of 16, Pillow keeps the higher ones; grey alone it clips at 255, which makes
    /// nearly all of it white, so that is scaled instead.
    fn bytes(&self) -> DynamicImage {
        let high = |values: &[u16]| values.iter().map(|v| (v >> 8) as u8).collect();
        let [width, height] = [self.0.width(), self.0.height()];
        let made = match &self.0 {
            DynamicImage::ImageRgb16(p) => ::image::RgbImage::from_raw(width, height, high(p)).map(Into::into),
            DynamicImage::ImageRgba16(p) => ::image::RgbaImage::from_raw(width, height, high(p)).map(Into::into),
            DynamicImage::ImageLumaA16(p) => ::image::GrayAlphaImage::from_raw(width, height, high(p)).map(Into::into),
            other => return other.clone(),
        };
        made.expect("as many values as before")
    }
}

/// How the picture is to be turned.
fn orientation(decoder: &mut impl ImageDecoder) -> ImageResult<Orientation> {
    let mut told = decoder.exif_metadata()?.and_then(|exif| Orientation::from_exif_chunk(&exif));
    if told.is_none() {
        told = decoder.xmp_metadata()?.and_then(|xmp| orientation_of_xmp(&String::from_utf8_lossy(&xmp)));
    }
    Ok(told.unwrap_or(Orientation::NoTransforms))
}

/// The first digit that stands where XMP tells an orientation: an attribute's or an element's.
fn orientation_of_xmp(xmp: &str) -> Option<Orientation> {
    let digit = |rest: &str| {
        let rest = rest.strip_prefix("=\"").or(rest.strip_prefix('>'))?;
        rest.chars().next()?.to_digit(10)
    };
    Orientation::from_exif(xmp.split("tiff:Orientation").skip(1).find_map(digit)? as u8)
}

/// Brightness as Pillow's `convert("L")` has it: the weights of Rec. 601 in 16 bits.
fn grey(rgb: &Image) -> Image {
    let brightness = |p: &[u8]| {
        let [r, g, b] = [p[0], p[1], p[2]].map(u32::from);
        ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
    };
    let bytes = rgb.bytes().chunks_exact(3).map(brightness).collect();
    Image::new(rgb.width(), rgb.height(), 1, bytes)
}

/// `image` brought to height and width `size`.
fn fit(image: &Image, size: [usize; 2], mode: ResizeMode) -> Image {
    let [height, width] = size.map(|n| n as u32);
    let ratio = |width: u32, height: u32| f64::from(width) / f64::from(height);
    let (wanted, own) = (ratio(width, height), ratio(image.width(), image.height()));
    // A side in proportion to the other, rounded down.
    let part = |side: u32, to: u32, of: u32| (u64::from(side) * u64::from(to) / u64::from(of)).max(1) as u32;
    let by_height = || [part(image.width(), height, image.height()), height];
    let by_width = || [width, part(image.height(), width, image.width())];
    let [columns, rows] = [[0, image.width()], [0, image.height()]];
    let lanczos = |columns, rows| resize(image, &columns, &rows, Filter::Lanczos);
    match mode {
        ResizeMode::Stretch => lanczos(Axis::new(columns, width), Axis::new(rows, height)),
        ResizeMode::Crop => {
            let [across, down] = if wanted > own { by_width() } else { by_height() };
            // Only what is not cut off is made: of a line across a tall picture, all would be enormous.
            let middle = |part, to: u32, kept: u32| {
                let first = to / 2 - kept / 2;
                Axis { part, to, keep: first..first + kept }
            };
            lanczos(middle(columns, across, width), middle(rows, down, height))
        }
        ResizeMode::Pad => {
            let [across, down] = if wanted < own { by_width() } else { by_height() };
            pad(&lanczos(Axis::new(columns, across), Axis::new(rows, down)), [width, height])
        }
    }
}

/// `image` in the middle of `width` x `height` pixels, to whose ends its outermost lines are continued.
fn pad(image: &Image, [width, height]: [u32; 2]) -> Image {
    let mut sheet = Image::of_pixels(width, height, image.channels(), 0);
    let [left, top] = [width / 2 - image.width() / 2, height / 2 - image.height() / 2];
    sheet.paste(image, [left, top]);
    let continued = |columns, rows| resize(image, &columns, &rows, Filter::Bicubic);
    let [columns, rows] = [[0, image.width()], [0, image.height()]];
    if top > 0 {
        let lines = |at| continued(Axis::new(columns, width), Axis::new([at; 2], top));
        sheet.paste(&lines(0), [0, 0]);
        sheet.paste(&lines(rows[1]), [0, top + rows[1]]);
    } else if left > 0 {
        let lines = |at| continued(Axis::new([at; 2], left), Axis::new(rows, height));
        sheet.paste(&lines(0), [0, 0]);
        sheet.paste(&lines(columns[1]), [left + columns[1], 0]);
    }
    sheet
}

//! Sound files as samples: WAV, FLAC, MP3, OGG/Vorbis, AAC and ALAC in M4A; any rate, any number of channels.

use std::fs::File;
use std::io::{self, Cursor};
use std::path::Path;

use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};

/// Samples announced by a WAV header that was written before the length was known (`espeak-ng --stdout`, `ffmpeg -`)
/// start here: 2 GiB of the widest samples.
const UNKNOWN_LENGTH: u64 = 0x7fff_0000 / 8;

/// A decoded sound.
#[derive(Debug, Clone)]
pub struct Sound {
    /// One vector of samples in [-1, 1] per channel, all of the same length.
    pub channels: Vec<Vec<f32>>,
    /// Samples per second.
    pub rate: u32,
}

/// Why a file gave no sound. `name` is its path, or what stands for it.
#[derive(Debug, thiserror::Error)]
pub enum SoundFileError {
    /// The file can't be opened or read.
    #[error("{name}: {what}; give the path of a sound file that you may read")]
    Unreadable { name: String, what: String },
    /// There are no bytes, or no samples.
    #[error("{name} is empty: {what}; give a file with sound in it")]
    Empty { name: String, what: &'static str },
    /// No decoder knows it.
    #[error(
        "{name} isn't a sound file that can be read ({what}); WAV, FLAC, MP3, OGG/Vorbis and AAC/M4A can, others after `ffmpeg -i FILE out.wav`"
    )]
    NotSound { name: String, what: String },
    /// It ends before the length in its header.
    #[error(
        "{name} is cut off: it holds {found:.2} s of the {announced:.2} s that its header announces; fetch it again, or ask for what is there with partial=True"
    )]
    Truncated { name: String, found: f64, announced: f64 },
    /// The format is known, but what is in it makes no sense.
    #[error("{name} is damaged: {what}; fetch it again, or convert it with `ffmpeg -i FILE out.wav`")]
    Damaged { name: String, what: String },
}

/// Reads the sound file at `path`; with `partial`, one that is cut off gives what is there.
///
/// # Errors
/// One kind of `SoundFileError` per cause.
pub fn read_path(path: &Path, partial: bool) -> Result<Sound, SoundFileError> {
    let name = path.display().to_string();
    let unreadable = |error: io::Error| SoundFileError::Unreadable {
        name: name.clone(),
        what: match error.kind() {
            io::ErrorKind::NotFound => "no such file".into(),
            io::ErrorKind::PermissionDenied => "permission denied".into(),
            io::ErrorKind::IsADirectory => "is a folder".into(),
            _ => error.to_string(),
        },
    };
    let file = File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    if about.is_dir() {
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
    if about.is_file() && about.len() == 0 {
        return Err(SoundFileError::Empty { name, what: "0 bytes" });
    }
    let mut hint = Hint::new();
    if let Some(extension) = path.extension().and_then(|e| e.to_str()) {
        hint.with_extension(extension);
    }
    decode(Box::new(file), &hint, name, partial)
}

/// Reads a sound file held in memory.
///
/// # Errors
/// One kind of `SoundFileError` per cause.
pub fn read_bytes(bytes: Vec<u8>, partial: bool) -> Result<Sound, SoundFileError> {
    let name = "the data given".to_string();
    if bytes.is_empty() {
        return Err(SoundFileError::Empty { name, what: "0 bytes" });
    }
    decode(Box::new(Cursor::new(bytes)), &Hint::new(), name, partial)
}

fn decode(
    source: Box<dyn MediaSource>,
    hint: &Hint,
    name: String,
    partial: bool,
) -> Result<Sound, SoundFileError> {
    let not_sound = |what: String| SoundFileError::NotSound { name: name.clone(), what };
    let stream = MediaSourceStream::new(source, Default::default());
    let mut format = symphonia::default::get_probe()
        .probe(hint, stream, Default::default(), Default::default())
        .map_err(|error| match error {
            Error::IoError(_) | Error::Unsupported(_) => not_sound("no known format".into()),
            other => not_sound(other.to_string()),
        })?;
    let (mut decoder, mut track) = open_track(format.as_mut()).map_err(not_sound)?;
    let announced = format
        .tracks()
        .iter()
        .find(|t| t.id == track)
        .and_then(|t| t.num_frames.map(|n| n.saturating_sub(u64::from(t.padding.unwrap_or(0)))));

    let mut sound = Sound { channels: Vec::new(), rate: 0 };
    let mut damage = None;
    let mut cut = false;
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(Error::IoError(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                cut = true;
                break;
            }
            Err(Error::ResetRequired) => {
                (decoder, track) = open_track(format.as_mut()).map_err(not_sound)?;
                continue;
            }
            Err(error) => {
                damage = Some(error.to_string());
                break;
            }
        };
        if packet.track_id != track {
            continue;
        }
        match decoder.decode(&packet) {
            Ok(piece) => {
                let (rate, count) = (piece.spec().rate(), piece.num_planes());
                if sound.channels.is_empty() {
                    (sound.rate, sound.channels) = (rate, vec![Vec::new(); count]);
                }
                if rate != sound.rate || count != sound.channels.len() {
                    let what = format!(
                        "it changes from {} channels at {} Hz to {count} at {rate} Hz",
                        sound.channels.len(),
                        sound.rate
                    );
                    return Err(SoundFileError::Damaged { name, what });
                }
                let mut planes: Vec<Vec<f32>> = Vec::new();
                piece.copy_to_vecs_planar(&mut planes);
                for (channel, plane) in sound.channels.iter_mut().zip(&planes) {
                    channel.extend_from_slice(plane);
                }
            }
            // A broken packet is skipped, as players do; a file of nothing else is refused below.
            Err(Error::DecodeError(what)) => damage = Some(what.to_string()),
            Err(error) => {
                damage = Some(error.to_string());
                break;
            }
        }
    }
    finish(sound, announced, cut, damage, partial, name)
}

/// Judges what was decoded: nothing, part of it, or all.
fn finish(
    sound: Sound,
    announced: Option<u64>,
    cut: bool,
    damage: Option<String>,
    partial: bool,
    name: String,
) -> Result<Sound, SoundFileError> {
    let found = sound.channels.first().map_or(0, Vec::len) as u64;
    if found == 0 {
        return Err(match damage {
            Some(what) => SoundFileError::Damaged { name, what },
            None => SoundFileError::Empty { name, what: "no samples" },
        });
    }
    let announced = announced.filter(|n| n * (sound.channels.len() as u64) < UNKNOWN_LENGTH);
    // Encoders count their own padding differently: less than a tenth of a second is no loss.
    let slack = u64::from(sound.rate) / 10;
    let missing = announced.is_some_and(|n| found + slack < n);
    if (missing || (cut && announced.is_some_and(|n| found < n))) && !partial {
        let rate = f64::from(sound.rate);
        let announced = announced.unwrap_or(found) as f64 / rate;
        return Err(SoundFileError::Truncated { name, found: found as f64 / rate, announced });
    }
    Ok(sound)
}

type OpenTrack = (Box<dyn AudioDecoder>, u32);

fn open_track(format: &mut dyn FormatReader) -> Result<OpenTrack, String> {
    let track =
        format.default_track(TrackType::Audio).ok_or_else(|| "there is no sound track in it".to_string())?;
    let parameters = track
        .codec_params
        .as_ref()
        .and_then(|p| p.audio())
        .ok_or_else(|| "its sound is in an unknown encoding".to_string())?;
    let decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &AudioDecoderOptions::default())
        .map_err(|error| format!("there is no decoder for its encoding: {error}"))?;
    Ok((decoder, track.id))
}

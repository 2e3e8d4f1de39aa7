//! Sound in and out for a full-duplex voice model. The core knows nothing of Python; the bindings are below `python`.

pub mod resample;
pub mod sound_file;

#[cfg(feature = "python")]
mod python;

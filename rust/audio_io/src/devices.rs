//! Which microphones and speakers there are, and which one is meant.

use cpal::traits::{DeviceTrait, HostTrait};
use cpal::{Device, Host};

/// Microphone or speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Sound comes in.
    Input,
    /// Sound goes out.
    Output,
}

impl Direction {
    /// What people call it.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Input => "microphone",
            Self::Output => "speaker",
        }
    }
}

/// The device that a user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// None: this side is not used.
    Off,
    /// Whatever the system uses, followed when that changes.
    Default,
    /// The device with this number in `list`.
    Number(usize),
    /// The device with this name or identifier, or with this as a part of it.
    Named(String),
    /// The device with this `Chosen::key`, and no other.
    Exact(String),
}

/// Why a device can't be used; the message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// There is none at all.
    #[error(
        "there is no {0}: connect one and check the system's sound settings, or use a sound file instead"
    )]
    None(&'static str),
    /// The one asked for does not exist.
    #[error("no {noun} is called {wanted}; there are: {known}")]
    Unknown { noun: &'static str, wanted: String, known: String },
    /// Another program holds it.
    #[error("{name} is busy: another program uses it alone; close that program or choose another device")]
    Busy { name: String },
    /// The system refuses it.
    #[error("access to {name} is refused: {hint}", hint = permission_hint())]
    Refused { name: String },
    /// It works in a way that is not understood.
    #[error("{name} can't be used: {what}; choose another device")]
    Unsupported { name: String, what: String },
    /// It, or the sound system, fails.
    #[error("{name} can't be opened: {what}; check that it is connected, or choose another device")]
    Failed { name: String, what: String },
}

impl DeviceFault {
    /// The fault behind what the sound system reported about `name`.
    pub fn from_system(error: &cpal::Error, name: &str) -> Self {
        let name = name.to_string();
        // It goes on after what the system says, which may be sentences.
        let what = error.to_string().trim_end_matches('.').to_string();
        match error.kind() {
            cpal::ErrorKind::DeviceBusy => Self::Busy { name },
            cpal::ErrorKind::PermissionDenied => Self::Refused { name },
            cpal::ErrorKind::UnsupportedConfig | cpal::ErrorKind::UnsupportedOperation => {
                Self::Unsupported { name, what }
            }
            _ => Self::Failed { name, what },
        }
    }
}

/// Where to allow a program the microphone.
pub fn permission_hint() -> &'static str {
    if cfg!(target_os = "macos") {
        "allow your terminal under System Settings > Privacy & Security > Microphone, then start it again"
    } else {
        "check the sound settings, and that you are in the group `audio`"
    }
}

/// What one direction of a device offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Channels that it has by default.
    pub channels: u16,
    /// Rate that it has by default.
    pub rate: u32,
    /// Common rates that it can have.
    pub rates: Vec<u32>,
    /// Whether the system uses it by default.
    pub default: bool,
}

/// A device as shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Position in the list, to choose it by.
    pub number: usize,
    /// Sound system: CoreAudio, PulseAudio, ALSA, PipeWire.
    pub host: String,
    /// Name for people.
    pub name: String,
    /// Name that stays the same.
    pub id: String,
    /// Its microphone side.
    pub input: Option<Port>,
    /// Its speaker side.
    pub output: Option<Port>,
}

/// A device chosen for one direction.
pub struct Chosen {
    /// The device itself.
    pub device: Device,
    /// Name for people.
    pub name: String,
    /// Name that stays the same: equal for equal devices.
    pub key: String,
    /// Sound system.
    pub host: String,
}

const COMMON_RATES: [u32; 9] = [8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000];

/// All devices of all `hosts`.
pub fn list(hosts: &[Host]) -> Vec<DeviceInfo> {
    each(hosts).into_iter().map(|(info, _)| info).collect()
}

fn each(hosts: &[Host]) -> Vec<(DeviceInfo, Device)> {
    let mut found = Vec::new();
    for host in hosts {
        let input = host.default_input_device().map(|d| key(&d));
        let output = host.default_output_device().map(|d| key(&d));
        for device in host.devices().into_iter().flatten() {
            let id = key(&device);
            let port = |direction, default: &Option<String>| {
                port(&device, direction, default.as_deref() == Some(id.as_str()))
            };
            let info = DeviceInfo {
                number: found.len(),
                host: host.id().name().to_string(),
                name: name(&device),
                input: port(Direction::Input, &input),
                output: port(Direction::Output, &output),
                id: id.clone(),
            };
            if info.input.is_some() || info.output.is_some() {
                found.push((info, device));
            }
        }
    }
    found
}

fn port(device: &Device, direction: Direction, default: bool) -> Option<Port> {
    let (usual, ranges): (_, Vec<_>) = match direction {
        Direction::Input => {
            (device.default_input_config().ok()?, device.supported_input_configs().ok()?.collect())
        }
        Direction::Output => {
            (device.default_output_config().ok()?, device.supported_output_configs().ok()?.collect())
        }
    };
    let fits = |rate: &u32| ranges.iter().any(|range| range.contains_rate(*rate));
    Some(Port {
        channels: usual.channels(),
        rate: usual.sample_rate(),
        rates: COMMON_RATES.into_iter().filter(fits).collect(),
        default,
    })
}

fn name(device: &Device) -> String {
    device.description().map_or_else(|_| "unnamed device".into(), |d| d.name().to_string())
}

fn key(device: &Device) -> String {
    device.id().map_or_else(|_| name(device), |id| id.id().to_string())
}

/// The device that `selection` means for `direction` right now.
///
/// # Errors
/// `DeviceFault::None` when there is no default, `DeviceFault::Unknown` when nothing matches.
pub fn choose(hosts: &[Host], selection: &Selection, direction: Direction) -> Result<Chosen, DeviceFault> {
    let noun = direction.noun();
    if *selection == Selection::Default {
        let device = hosts.iter().find_map(|host| {
            let device = match direction {
                Direction::Input => host.default_input_device(),
                Direction::Output => host.default_output_device(),
            };
            device.map(|d| (d, host.id().name().to_string()))
        });
        let (device, host) = device.ok_or(DeviceFault::None(noun))?;
        return Ok(Chosen { name: name(&device), key: key(&device), device, host });
    }
    let fitting: Vec<_> = each(hosts)
        .into_iter()
        .filter(|(info, _)| match direction {
            Direction::Input => info.input.is_some(),
            Direction::Output => info.output.is_some(),
        })
        .collect();
    if fitting.is_empty() {
        return Err(DeviceFault::None(noun));
    }
    let known = fitting.iter().map(|(info, _)| format!("{} {}", info.number, info.name)).collect::<Vec<_>>();
    let (position, wanted) = match selection {
        Selection::Number(number) => {
            (fitting.iter().position(|(info, _)| info.number == *number), format!("number {number}"))
        }
        Selection::Named(text) => {
            let text = text.to_lowercase();
            let names = |info: &DeviceInfo| [info.name.to_lowercase(), info.id.to_lowercase()];
            let exact = fitting.iter().position(|(info, _)| names(info).contains(&text));
            let part = || fitting.iter().position(|(info, _)| names(info).iter().any(|n| n.contains(&text)));
            (exact.or_else(part), format!("\"{text}\""))
        }
        Selection::Exact(key) => (fitting.iter().position(|(info, _)| info.id == *key), format!("\"{key}\"")),
        Selection::Off | Selection::Default => (None, "nothing".into()),
    };
    let position = position.ok_or_else(|| DeviceFault::Unknown { noun, wanted, known: known.join(", ") })?;
    let (info, device) = fitting.into_iter().nth(position).ok_or(DeviceFault::None(noun))?;
    Ok(Chosen { device, name: info.name, key: info.id, host: info.host })
}

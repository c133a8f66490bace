//! A guest that fits into a boot sector, for a machine that is itself emulated, where a kernel would take minutes to
//! boot.
//!
//! It prints a message on its serial port, sleeps, and powers off when its power button is pressed, like a guest that
//! shuts down cleanly.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use waifud_lab::wait;

/// Its message.
pub const UP: &str = "button: up";

/// The address to which the firmware loads a boot sector.
const LOADED: u16 = 0x7c00;
/// The port of the firmware's ACPI power management registers: status, enable (+2) and control (+4); see "PM1 Event
/// Grouping" and "PM1 Control Grouping" in the ACPI specification.
const PM1: u16 = 0x600;

/// Creates its image in `dir`.
///
/// # Errors
/// `qemu-img` is missing or fails.
pub fn image(dir: &Path) -> Result<PathBuf> {
    let raw = dir.join("button.raw");
    let image = dir.join("button.qcow2");
    std::fs::write(&raw, disk())?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
    wait::run(convert.arg(raw).arg(&image), Duration::from_secs(30))?;
    Ok(image)
}

/// The disk: 1 MiB, a size that all tools accept.
fn disk() -> Vec<u8> {
    let [enable_low, enable_high] = (PM1 + 2).to_le_bytes();
    let [status_low, status_high] = PM1.to_le_bytes();
    let [control_low, control_high] = (PM1 + 4).to_le_bytes();
    let code = |text_low, text_high| {
        [
            &[0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0xfb][..], //    cld; xor ax,ax; mov ds,ax; sti
            &[0xba, enable_low, enable_high],          //    mov dx,ENABLE
            &[0xed, 0x0d, 0x00, 0x01, 0xef],           //    in ax,dx; or ax,PWRBTN_EN; out dx,ax
            &[0xbe, text_low, text_high],              //    mov si,TEXT
            &[0xac, 0x84, 0xc0, 0x74, 0x06],           // say:    lodsb; test al,al; jz wait
            &[0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5],     //    mov dx,0x3f8; out dx,al; jmp say
            &[0xf4],                                   // wait:   hlt (until the timer)
            &[0xba, status_low, status_high, 0xed],    //    mov dx,STATUS; in ax,dx
            &[0xf6, 0xc4, 0x01, 0x74, 0xf6],           //         test ah,PWRBTN_STS >> 8; jz wait
            &[0xba, control_low, control_high],        //       mov dx,CONTROL
            &[0xb8, 0x00, 0x20, 0xef, 0xeb, 0xed], //    mov ax,SLP_EN (state S5); out dx,ax; jmp wait
        ]
        .concat()
    };
    let length = u16::try_from(code(0, 0).len()).unwrap_or(u16::MAX);
    let [text_low, text_high] = (LOADED + length).to_le_bytes();
    let mut disk = code(text_low, text_high);
    disk.extend(UP.as_bytes());
    disk.extend(b"\r\n\0");
    disk.resize(510, 0);
    // The signature of a bootable sector.
    disk.extend([0x55, 0xaa]);
    disk.resize(1 << 20, 0);
    disk
}

//! `/v1/capacity`.

use std::ops::RangeInclusive;

use utoipa::IntoParams;
use waifud_api::{Capacity, InstanceSize, Problem};
use waifud_types::ByteSize;
use waifud_types::spec::limits;

use super::answers::Answer;
use super::body::Json;
use super::peer::AuthenticatedUser;
use super::query::{FromParams, Params, Query};
use crate::instances::defaults;
use crate::problems;

/// The maximum of `survive`.
pub(super) const SURVIVE_MAX: u32 = 10_000;

/// The size of the instances, and how many nodes are assumed to be off.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct CapacityParams {
    /// Number of virtual CPUs; 1 by default.
    #[param(value_type = Option<u32>)]
    cpus: u32,
    /// Memory in bytes; 1 GiB by default.
    #[param(value_type = Option<u64>)]
    memory_bytes: ByteSize,
    /// Size of the disk in the pool `main` in bytes; 10 GiB by default.
    #[param(value_type = Option<u64>)]
    disk_bytes: ByteSize,
    /// Also tell whether all running instances would fit with this many of the largest reachable nodes off.
    survive: Option<u32>,
}

impl FromParams for CapacityParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        let sizes = |least: ByteSize, most: ByteSize| least.bytes()..=most.bytes();
        let memory = sizes(limits::MEMORY_MIN, limits::MEMORY_MAX);
        let disk = sizes(limits::DISK_MIN, limits::DISK_MAX);
        let cpus = params.number_in("cpus", 1..=limits::CPUS_MAX.into())?;
        let survive = params.number_in("survive", 0..=SURVIVE_MAX.into())?;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Self {
            cpus: cpus.map_or(defaults::SIZE.cpus, small),
            memory_bytes: params
                .number_in("memory_bytes", memory)?
                .map_or(defaults::SIZE.memory_bytes, ByteSize),
            disk_bytes: params
                .number_in("disk_bytes", disk)?
                .map_or(defaults::SIZE.disk_bytes, ByteSize),
            survive: survive.map(small),
        })
    }
}

impl Params {
    /// A number in a range, if given.
    fn number_in(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Problem> {
        let Some(text) = self.one(name)? else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| {
            let (least, most) = range.into_inner();
            problems::bad_query(
                name,
                format!("the parameter `{name}` is not a number in its range"),
                format!("use a number from {least} to {most}"),
            )
        })
    }
}

/// Tells how many more instances of a size fit, and whether the running ones would still fit with nodes off.
#[utoipa::path(
    get, path = "/v1/capacity", tag = "nodes", operation_id = "capacity",
    params(CapacityParams), responses((status = 200, description = "The capacity.", body = Capacity))
)]
pub async fn show(
    user: AuthenticatedUser,
    Query(params): Query<CapacityParams>,
) -> Answer<Capacity> {
    let size = InstanceSize {
        cpus: params.cpus,
        memory_bytes: params.memory_bytes,
        disk_bytes: params.disk_bytes,
    };
    Ok(Json(user.control.capacity(size, params.survive).await?))
}

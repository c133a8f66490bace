//! The agent's failpoints: durable writes, changes to its node, and messages. Tests kill it before and after each one.

waifud_kit::acts! {
    "agentd":
    /// The node's record is written.
    NODE_SAVE = "node.save";
    /// An instance's record is written.
    RECORD_SAVE = "record.save";
    /// An instance's record is removed.
    RECORD_FORGET = "record.forget";
    /// An image is downloaded.
    IMAGE_FETCH = "image.fetch";
    /// An image is imported into a pool.
    IMAGE_IMPORT = "image.import";
    /// A disk is created, or grown while its guest is off.
    VOLUME = "volume";
    /// A disk of another node is received.
    DISK_RECEIVE = "disk.receive";
    /// A received disk becomes a volume.
    DISK_COMPLETE = "disk.complete";
    /// The disk with the documents is written or removed.
    SEED = "seed";
    /// A guest's directories are created.
    FILES = "files";
    /// A domain is defined.
    DEFINE = "define";
    /// The node's leases and rules are applied.
    NETWORK = "network";
    /// The tunnel is sent to metadatad.
    TUNNEL = "tunnel";
    /// A bundle is sent to metadatad.
    BUNDLE = "bundle";
    /// An assignment is sent to metadatad.
    ASSIGN = "assign";
    /// A guest is started.
    START = "start";
    /// Nics are added to a running guest or removed from it.
    NICS = "nics";
    /// The disk of a running guest is grown.
    GROW = "grow";
    /// A guest is asked to shut down.
    SHUTDOWN = "shutdown";
    /// A guest is forced off.
    FORCE_OFF = "force-off";
    /// A domain is undefined.
    UNDEFINE = "undefine";
    /// A disk is destroyed.
    VOLUME_DESTROY = "volume.destroy";
    /// A guest's other files are removed.
    FILES_REMOVE = "files.remove";
    /// metadatad is asked to release an instance.
    RELEASE = "release";
    /// The node introduces itself to waifud.
    HELLO = "hello";
    /// A report is sent to waifud.
    REPORT = "report";
}

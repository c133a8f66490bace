//! The agent's failpoints: durable writes, changes to its node, and messages. Tests kill it before and after each one.

waifud_kit::acts! {
    "agentd":
    /// What is remembered of the node becomes durable.
    NODE_SAVE = "node.save";
    /// What is remembered of an instance becomes durable.
    RECORD_SAVE = "record.save";
    /// An instance's record goes.
    RECORD_FORGET = "record.forget";
    /// An image comes to the node.
    IMAGE_FETCH = "image.fetch";
    /// An image becomes one of a pool's.
    IMAGE_IMPORT = "image.import";
    /// A disk is made, or grown while its guest is off.
    VOLUME = "volume";
    /// The disk with the documents is written, or goes.
    SEED = "seed";
    /// A guest's directories are made.
    FILES = "files";
    /// A domain is defined.
    DEFINE = "define";
    /// The node's leases and rules become as the records say.
    NETWORK = "network";
    /// metadatad hears of the tunnel.
    TUNNEL = "tunnel";
    /// metadatad is given a bundle.
    BUNDLE = "bundle";
    /// metadatad is told whom to serve what.
    ASSIGN = "assign";
    /// A guest is started.
    START = "start";
    /// The disk of a running guest grows.
    GROW = "grow";
    /// A guest is asked to shut down.
    SHUTDOWN = "shutdown";
    /// A guest's plug is pulled.
    FORCE_OFF = "force-off";
    /// A domain goes.
    UNDEFINE = "undefine";
    /// A disk goes.
    VOLUME_DESTROY = "volume.destroy";
    /// A guest's other files go.
    FILES_REMOVE = "files.remove";
    /// metadatad forgets an instance.
    RELEASE = "release";
    /// waifud hears of the node.
    HELLO = "hello";
    /// waifud hears what changed.
    REPORT = "report";
}

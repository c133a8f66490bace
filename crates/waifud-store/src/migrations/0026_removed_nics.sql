-- The nic that the lease belonged to, if it was removed from the spec, and the generation without it. The lease stays until the
-- node has confirmed that the guest does not have the nic any more.
ALTER TABLE leases ADD COLUMN removed_nic TEXT;
ALTER TABLE leases ADD COLUMN removed_at INTEGER;

CREATE TRIGGER names_nic_removed AFTER UPDATE OF removed_nic ON leases
WHEN OLD.address IS NOT NULL AND OLD.removed_nic IS NOT NEW.removed_nic BEGIN
    DELETE FROM node_names WHERE node = (SELECT node FROM instances WHERE id = NEW.instance);
    INSERT INTO node_names (node)
    SELECT node FROM instances WHERE id = NEW.instance AND node IS NOT NULL;
END;

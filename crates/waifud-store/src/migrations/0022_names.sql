-- The nodes whose instances' names or addresses have changed, in the order of the last change of each. The revision is not one
-- of the history, and none is used twice. Kept by the triggers below.
CREATE TABLE node_names (
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    node     BLOB NOT NULL UNIQUE REFERENCES nodes (id) ON DELETE CASCADE
) STRICT;
INSERT INTO node_names (node) SELECT id FROM nodes;

CREATE TRIGGER names_of_node_added AFTER INSERT ON nodes BEGIN
    INSERT INTO node_names (node) VALUES (NEW.id);
END;

CREATE TRIGGER names_changed AFTER UPDATE OF name, node, deleting ON instances
WHEN OLD.name <> NEW.name OR OLD.node IS NOT NEW.node OR OLD.deleting <> NEW.deleting BEGIN
    DELETE FROM node_names WHERE node IN (OLD.node, NEW.node);
    INSERT INTO node_names (node) SELECT id FROM nodes WHERE id IN (OLD.node, NEW.node);
END;
CREATE TRIGGER names_removed AFTER DELETE ON instances WHEN OLD.node IS NOT NULL AND OLD.deleting = 0 BEGIN
    DELETE FROM node_names WHERE node = OLD.node;
    INSERT INTO node_names (node) SELECT id FROM nodes WHERE id = OLD.node;
END;

CREATE TRIGGER names_address_changed AFTER UPDATE OF address ON leases WHEN OLD.address IS NOT NEW.address BEGIN
    DELETE FROM node_names WHERE node = (SELECT node FROM instances WHERE id = NEW.instance);
    INSERT INTO node_names (node)
    SELECT node FROM instances WHERE id = NEW.instance AND node IS NOT NULL;
END;
CREATE TRIGGER names_address_added AFTER INSERT ON leases WHEN NEW.address IS NOT NULL BEGIN
    DELETE FROM node_names WHERE node = (SELECT node FROM instances WHERE id = NEW.instance);
    INSERT INTO node_names (node)
    SELECT node FROM instances WHERE id = NEW.instance AND node IS NOT NULL;
END;
CREATE TRIGGER names_address_removed AFTER DELETE ON leases WHEN OLD.address IS NOT NULL BEGIN
    DELETE FROM node_names WHERE node = (SELECT node FROM instances WHERE id = OLD.instance);
    INSERT INTO node_names (node)
    SELECT node FROM instances WHERE id = OLD.instance AND node IS NOT NULL;
END;

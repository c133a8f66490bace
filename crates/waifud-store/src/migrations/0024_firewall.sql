-- Whether a rule of the instance's firewall names an instance or a label, whose addresses its node must be told.
ALTER TABLE instances ADD COLUMN firewall_peers INTEGER NOT NULL DEFAULT 0;
CREATE INDEX instances_with_peers ON instances (node) WHERE firewall_peers = 1;

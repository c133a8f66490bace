-- off: the node that released the instance has reported that its guest is off. Until now a release that stops the guest was
-- recorded only after that.
ALTER TABLE ownership ADD COLUMN off INTEGER NOT NULL DEFAULT 0;
UPDATE ownership SET off = 1 WHERE role = 'released' AND stop = 1;

-- instances.node always names a node with a part: after the part of that node has ended, the owner, or else another node.
DROP TRIGGER owner_removed;
CREATE TRIGGER part_removed AFTER DELETE ON ownership BEGIN
    UPDATE instances
       SET node = (SELECT node FROM ownership WHERE instance = OLD.instance ORDER BY role = 'owner' DESC, epoch DESC LIMIT 1)
     WHERE id = OLD.instance AND node = OLD.node;
END;
UPDATE instances
   SET node = (SELECT o.node FROM ownership o WHERE o.instance = instances.id ORDER BY o.role = 'owner' DESC, o.epoch DESC LIMIT 1)
 WHERE node IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM ownership o WHERE o.instance = instances.id AND o.node = instances.node);

-- What ALTER DATABASE and ALTER ROLE set for those who create a slot.
--
-- Run by the worker in the same transaction as slots.sql, while a slot is being
-- created. The more special setting counts, as for a session that begins
-- (process_settings, postinit.c).
SELECT c.pid,
       (SELECT pg_catalog.split_part(u.setting, '=', 2)
          FROM pg_catalog.pg_db_role_setting AS d,
               pg_catalog.unnest(d.setconfig) AS u (setting)
         WHERE d.setdatabase OPERATOR(pg_catalog.=) ANY (ARRAY[c.datid, 0])
           AND d.setrole OPERATOR(pg_catalog.=) ANY (ARRAY[c.usesysid, 0])
           AND pg_catalog.starts_with(u.setting, 'slot_self_heal.creation_timeout=')
         ORDER BY d.setrole OPERATOR(pg_catalog.=) 0, d.setdatabase OPERATOR(pg_catalog.=) 0
         LIMIT 1) AS creation_timeout,
       (SELECT pg_catalog.split_part(u.setting, '=', 2)
          FROM pg_catalog.pg_db_role_setting AS d,
               pg_catalog.unnest(d.setconfig) AS u (setting)
         WHERE d.setdatabase OPERATOR(pg_catalog.=) ANY (ARRAY[c.datid, 0])
           AND d.setrole OPERATOR(pg_catalog.=) ANY (ARRAY[c.usesysid, 0])
           AND pg_catalog.starts_with(u.setting, 'slot_self_heal.max_retained_wal=')
         ORDER BY d.setrole OPERATOR(pg_catalog.=) 0, d.setdatabase OPERATOR(pg_catalog.=) 0
         LIMIT 1) AS max_retained_wal
  FROM pg_catalog.pg_stat_activity AS c
       JOIN pg_catalog.pg_replication_slots AS s
         ON s.active_pid OPERATOR(pg_catalog.=) c.pid
 WHERE s.confirmed_flush_lsn IS NULL
   AND s.slot_type OPERATOR(pg_catalog.=) 'logical'

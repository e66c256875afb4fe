-- What ALTER DATABASE and ALTER ROLE set for those who create a slot, one row a
-- setting, the most special first: that one counts, as for a session that begins
-- (process_settings, postinit.c).
--
-- Run by the worker in the same transaction as slots.sql, while a slot is being
-- created.
SELECT c.pid,
       pg_catalog.split_part(u.setting, '=', 1) AS name,
       pg_catalog.split_part(u.setting, '=', 2) AS value
  FROM pg_catalog.pg_replication_slots AS s
       JOIN pg_catalog.pg_stat_activity AS c
         ON c.pid OPERATOR(pg_catalog.=) s.active_pid
       JOIN pg_catalog.pg_db_role_setting AS d
         ON d.setdatabase OPERATOR(pg_catalog.=) ANY (ARRAY[c.datid, 0])
        AND d.setrole OPERATOR(pg_catalog.=) ANY (ARRAY[c.usesysid, 0])
       CROSS JOIN LATERAL pg_catalog.unnest(d.setconfig) AS u (setting)
 WHERE s.confirmed_flush_lsn IS NULL
   AND s.slot_type OPERATOR(pg_catalog.=) 'logical'
   AND pg_catalog.starts_with(u.setting, 'slot_self_heal.')
 ORDER BY d.setrole OPERATOR(pg_catalog.=) 0,
          d.setdatabase OPERATOR(pg_catalog.=) 0

-- The least rights that Waymark needs in PostgreSQL. Run it as a superuser, in
-- the database that is to hold the tables, before the first migration or after
-- any; running it again changes nothing.
--
--   psql -f deploy/rights/postgres.sql waymark
--   psql -v service=wm -v reader=everybody -f deploy/rights/postgres.sql waymark
--
-- owner    owns the schema: waymark migrate, or waymark serve, which migrates too
-- service  waymark serve --no-migrate, and waymark dead-letters
-- reader   waymark list, status, jobs, logs, history, watch, ledger; dashboards; psql
--
-- Roles that are missing are created without a password, which psql's
-- "\password ROLE" sets. The reader cannot log in: GRANT it to those who can.
\set ON_ERROR_STOP on
\if :{?schema}
\else
  \set schema waymark
\endif
\if :{?owner}
\else
  \set owner waymark_owner
\endif
\if :{?service}
\else
  \set service waymark_service
\endif
\if :{?reader}
\else
  \set reader waymark_reader
\endif

BEGIN;

SELECT format('CREATE ROLE %I %s', name, kind)
FROM (VALUES (:'owner', 'LOGIN'), (:'service', 'LOGIN'), (:'reader', 'NOLOGIN')) AS wanted (name, kind)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

SELECT format('GRANT CONNECT ON DATABASE %I TO %I, %I, %I', current_database(), :'owner', :'service', :'reader') \gexec

CREATE SCHEMA IF NOT EXISTS :"schema" AUTHORIZATION :"owner";
GRANT USAGE ON SCHEMA :"schema" TO :"service", :"reader";

-- What is there, and what later migrations make. DELETE is for what serve
-- forgets after consumer.remember, for logs that are cut, for the digests of
-- deliveries, and for database.keep_runs.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA :"schema" TO :"service";
GRANT SELECT ON ALL TABLES IN SCHEMA :"schema" TO :"reader";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA :"schema" GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"service";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA :"schema" GRANT SELECT ON TABLES TO :"reader";

COMMIT;

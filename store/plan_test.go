package store

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// What people ask for most is found by an index, however many runs there are.
func TestQueriesFindTheirIndex(t *testing.T) {
	t.Parallel()
	db := migrated(t)
	for name, test := range map[string]struct {
		query string
		want  []string
	}{
		"latest run by name":           {strings.ReplaceAll(sqlOwners, "$2", "''") + ` SELECT * FROM latest`, []string{"using workflows_run", "(owner > latest"}},
		"latest run by name and owner": {strings.ReplaceAll(sqlOwners, "$2", "'ada'") + ` SELECT * FROM latest`, []string{"using workflows_run", "(owner >= 'ada'"}},
		"view by status":               {`SELECT name FROM workflow_status WHERE status = $1 ORDER BY created_at DESC LIMIT 20`, []string{"using workflows_status", "Index Cond"}},
		"number of a run": {`SELECT max(run_number) FROM workflows WHERE owner = 'ada' AND name = $1 AND run_number > 0`,
			[]string{"using workflows_run", "(owner = 'ada'::text)"}},
	} {
		t.Run(name, func(t *testing.T) {
			tx, err := db.reads.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			// Tables this small are read whole, if they may.
			if _, err := tx.ExecContext(t.Context(), `SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off`); err != nil {
				t.Fatal(err)
			}
			rows, err := tx.QueryContext(t.Context(), `EXPLAIN (COSTS off) `+strings.ReplaceAll(test.query, "$1", "'running'"))
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			var plan strings.Builder
			for rows.Next() {
				var line string
				if err := rows.Scan(&line); err != nil {
					t.Fatal(err)
				}
				plan.WriteString(line + "\n")
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if !strings.Contains(plan.String(), want) {
					t.Errorf("the plan lacks %q:\n%s", want, &plan)
				}
			}
			if strings.Contains(plan.String(), "Seq Scan") {
				t.Errorf("the plan reads a whole table:\n%s", &plan)
			}
		})
	}
}

// A batch updates rows where it found them, without a look into an index: of a
// large table that is most of the cost.
func TestUpdatesGoToTheRow(t *testing.T) {
	t.Parallel()
	db := migrated(t)
	for name, statement := range map[string]string{"jobs": sqlUpdateJobs, "runs": sqlUpdateRuns} {
		t.Run(name, func(t *testing.T) {
			err := withPgx(t.Context(), db.applies, func(conn *pgx.Conn) error {
				prepared, err := conn.Prepare(t.Context(), "update_"+name, statement)
				if err != nil {
					return err
				}
				nulls := strings.TrimSuffix(strings.Repeat("NULL, ", len(prepared.ParamOIDs)), ", ")
				rows, err := conn.Query(t.Context(), `EXPLAIN (COSTS off) EXECUTE update_`+name+`(`+nulls+`)`, pgx.QueryExecModeSimpleProtocol)
				if err != nil {
					return err
				}
				lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if plan := strings.Join(lines, "\n"); err == nil && !strings.Contains(plan, "Tid Scan") {
					t.Errorf("the plan does not go to the row:\n%s", plan)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

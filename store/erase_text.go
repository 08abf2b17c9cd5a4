package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// eraseText finds an address in a text and puts another in its place.
type eraseText struct {
	forms []string // as it may stand in a text, in lower case
	find  *regexp.Regexp
	put   string
}

// newEraseText is for an address as it stands, and as JSON writes it.
func newEraseText(mailbox, pseudonym string) *eraseText {
	t := &eraseText{put: "${before}" + strings.ReplaceAll(pseudonym, "$", "$$") + "${after}"}
	b, _ := json.Marshal(mailbox) // a string always can be
	for _, form := range []string{mailbox, strings.Trim(string(b), `"`)} {
		if form = strings.ToLower(form); !slices.Contains(t.forms, form) {
			t.forms = append(t.forms, form)
		}
	}
	quoted := make([]string, len(t.forms))
	for i, f := range t.forms {
		quoted[i] = regexp.QuoteMeta(f)
	}
	// Not a part of a longer address: "a@x" is neither in "aa@x" nor in "a@x.y" or "a@xy".
	t.find = regexp.MustCompile("(?i)(?P<before>^|[^A-Za-z0-9.!#$%&'*+/=?^_`{|}~-])(?:" + strings.Join(quoted, "|") + `)(?P<after>$|\.?$|\.[^A-Za-z0-9]|[^A-Za-z0-9.-])`)
	return t
}

// replace is the text with the other address. Twice, because two addresses may share the
// character between them.
func (t *eraseText) replace(text string) string {
	return t.find.ReplaceAllString(t.find.ReplaceAllString(text, t.put), t.put)
}

// eraseTable is a table and its texts.
type eraseTable struct {
	name    string
	key     []string // the columns that find a row again
	columns []eraseColumn
}

type eraseColumn struct {
	Table, Column, Type string
	Key                 bool // SQLite: it is part of the key by which alone a row is found
}

// at is the condition that finds a row by its place.
func (t *eraseTable) at() string {
	if t.key[0] == "ctid" {
		return "ctid = cast(? as tid)"
	}
	return strings.Join(t.key, " = ? and ") + " = ?"
}

// tables are all tables with texts, as the database has them: a column that a later version
// adds is erased too.
func (x *eraser) tables(ctx context.Context) (tables []eraseTable, err error) {
	q := `select table_name as "table", column_name as "column", data_type as "type", false as "key" from information_schema.columns
  where table_schema = current_schema() and data_type in ('text', 'character varying', 'json', 'jsonb') order by 1, ordinal_position`
	if x.s.Dialect() == "sqlite" {
		q = `select l.name as "table", c.name as "column", lower(c.type) as "type", l.wr and c.pk > 0 as "key"
  from pragma_table_list l, pragma_table_info(l.name) c
  where l.schema = 'main' and l.type = 'table' and (lower(c.type) = 'text' or l.wr and c.pk > 0) order by 1, c.cid`
	}
	var columns []eraseColumn
	if err := x.s.read.SelectContext(ctx, &columns, q); err != nil {
		return nil, err
	}
	for _, c := range columns {
		if strings.HasPrefix(c.Table, "goose_") || strings.HasPrefix(c.Table, "sqlite_") || c.Table == "term" {
			// hashes and ids
			continue
		}
		if n := len(tables); n == 0 || tables[n-1].name != c.Table {
			tables = append(tables, eraseTable{name: c.Table})
		}
		t := &tables[len(tables)-1]
		if c.Key {
			t.key = append(t.key, c.Column)
		}
		if c.Type != "integer" && c.Type != "blob" {
			t.columns = append(t.columns, c)
		}
	}
	for i := range tables {
		switch t := &tables[i]; {
		case len(t.key) > 0: // without rowid
		case x.s.Dialect() == "sqlite":
			t.key = []string{"rowid"}
		default:
			t.key = []string{"ctid"}
		}
	}
	// The archive comes behind the mails: a mail that finishes meanwhile brings its batch_id
	// and caller there, and is done or told as waiting by then. What names a mail's caller
	// comes behind them, and what is added up behind what it is added up from. So nothing
	// brings the address back to a table that is done.
	slices.SortStableFunc(tables, func(a, b eraseTable) int { return eraseRank(a.name) - eraseRank(b.name) })
	return slices.DeleteFunc(tables, func(t eraseTable) bool { return len(t.columns) == 0 }), nil
}

func eraseRank(table string) int {
	return 1 + slices.Index([]string{"archive", "count_delta", "count_queue", "count_batch"}, table)
}

// named is a row that names the address.
type named struct {
	place []any  // of the table's key
	id    string // of a mail, or of a setting; "" = none
	texts []*string
}

// table erases the address in a table's texts. The mails to it are done by then, or not to be
// counted again.
func (x *eraser) table(ctx context.Context, t eraseTable) error {
	rows, err := x.rows(ctx, t)
	if err != nil {
		return err
	}
	for page := range slices.Chunk(rows, erasePage) {
		if t.name == "audit" {
			err = x.audit(ctx, page)
		} else {
			err = x.rewrite(ctx, t, page)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rows reads the rows that name the address, and sorts out what may not be changed.
func (x *eraser) rows(ctx context.Context, t eraseTable) (out []named, err error) {
	w := newWhere(x.s)
	var conds, texts []string
	for _, c := range t.columns {
		texts = append(texts, fmt.Sprintf("cast(t.%s as text)", c.Column))
		for _, f := range x.text.forms {
			conds = append(conds, x.s.dialect.textOf("t."+c.Column)+` like ? escape '\'`)
			w.args = append(w.args, "%"+likeText(lowerASCII(f))+"%")
		}
	}
	id := "''"
	switch t.name {
	case "mail", "due", "archive", "legal_hold", "token", "upload", "operation":
		id = "cast(t.id as text)"
	case "mail_server":
		id = "t.name"
	case "operation_brake":
		id = "cast(t.operation as text)"
	case "audit":
		id = "cast(t.id as text)"
	}
	// of a mail: it is not finished; of a setting: it is in use; of an operation: it runs, and
	// would select other mail with another address
	stays := "1 = 0"
	switch t.name {
	case "mail":
		stays = "exists (select 1 from due d where d.id = t.id)"
	case "due", "operation_brake":
		stays = "1 = 1"
	case "operation":
		stays = "t.state = 'running'"
	case "mail_server":
		stays = "t.delete_time is null"
	case "token":
		stays = "t.revoke_time is null"
	case "legal_hold":
		stays = "t.lift_time is null"
	}
	place := "t." + strings.Join(t.key, ", t.")
	if t.key[0] == "ctid" {
		place = "cast(t.ctid as text)"
	}
	q := fmt.Sprintf("select %s, %s, %s, %s from %s t where %s", place, id, stays, strings.Join(texts, ", "), t.name, strings.Join(conds, " or "))
	rs, err := x.s.read.QueryxContext(patient(ctx, eraseStatement), x.s.read.Rebind(q), w.args...)
	if err != nil {
		return nil, err
	}
	defer rs.Close()
	for rs.Next() {
		r := named{place: make([]any, len(t.key)), texts: make([]*string, len(t.columns))}
		var keep bool
		var into []any
		for i := range r.place {
			into = append(into, &r.place[i])
		}
		into = append(into, &r.id, &keep)
		for i := range r.texts {
			into = append(into, &r.texts[i])
		}
		if err := rs.Scan(into...); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(r.texts, func(text *string) bool { return text != nil && x.text.replace(*text) != *text }) {
			continue
		}
		if keep && t.name == "legal_hold" { // only what it is about has to stay
			i := slices.IndexFunc(t.columns, func(c eraseColumn) bool { return c.Column == "reference" })
			keep = r.texts[i] != nil && x.text.replace(*r.texts[i]) != *r.texts[i]
		}
		if !keep {
			x.out.Texts[t.name]++
			out = append(out, r)
			continue
		}
		switch id, err := uuid.Parse(r.id); {
		case t.name == "mail_server":
			x.refused.Settings = append(x.refused.Settings, "mail server "+r.id)
		case t.name == "legal_hold":
			x.refused.Settings = append(x.refused.Settings, "legal hold "+r.id)
		case t.name == "token":
			x.refused.Settings = append(x.refused.Settings, "token "+r.id)
		case err == nil && (t.name == "operation" || t.name == "operation_brake"):
			if !slices.Contains(x.refused.Operations, id) && len(x.refused.Operations) < mostRefused {
				x.refused.Operations = append(x.refused.Operations, id)
			}
		case err == nil:
			x.waits(id)
		}
	}
	return out, rs.Err()
}

// rewrite puts the pseudonym into a page of rows, each only if it still reads as it did. Of
// mail it looks at the legal holds in the same transaction, which none is placed in.
func (x *eraser) rewrite(ctx context.Context, t eraseTable, page []named) error {
	ofMail := t.name == "mail" || t.name == "archive"
	if x.dry && !ofMail {
		return nil
	}
	if !x.dry && t.name == "mail" {
		// First, in a transaction of its own: no moment is without the one or the other.
		if err := x.requests(ctx, t, page); err != nil {
			return err
		}
	}
	return x.s.workTx(ctx, func(tx *sqlx.Tx) error {
		if ofMail {
			if err := x.held(ctx, tx, page); err != nil || x.dry {
				return err
			}
		}
		for _, r := range page {
			if err := x.row(ctx, tx, t, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// requests leaves hashes of the request_ids that will be rewritten, so that a caller who sends
// one again is told of the same mail.
func (x *eraser) requests(ctx context.Context, t eraseTable, page []named) error {
	return x.s.workTx(ctx, func(tx *sqlx.Tx) error {
		for _, r := range page {
			var team string
			var request *string
			for i, c := range t.columns {
				switch {
				case c.Column == "team" && r.texts[i] != nil:
					team = *r.texts[i]
				case c.Column == "request_id":
					request = r.texts[i]
				}
			}
			if request == nil || x.text.replace(*request) == *request {
				continue
			}
			if _, err := x.s.q.in(ctx, tx, "erased_request_insert").ExecContext(ctx, x.s.requestHash(team, *request), r.id); err != nil {
				return err
			}
		}
		return nil
	})
}

// row puts the pseudonym into a row.
func (x *eraser) row(ctx context.Context, tx *sqlx.Tx, t eraseTable, r named) error {
	var sets, same []string
	var args, was []any
	for i, c := range t.columns {
		if r.texts[i] == nil {
			continue
		}
		now := x.text.replace(*r.texts[i])
		if now == *r.texts[i] {
			continue
		}
		if t.name == "mail" && c.Column == "request_id" {
			now += "/" + r.id // two of them may read the same now
		}
		set := c.Column + " = ?"
		if c.Type == "json" || c.Type == "jsonb" {
			set = c.Column + " = cast(? as " + c.Type + ")"
		}
		sets, args = append(sets, set), append(args, now)
		same, was = append(same, "cast("+c.Column+" as text) = ?"), append(was, *r.texts[i])
	}
	where := fmt.Sprintf(" where %s and %s", t.at(), strings.Join(same, " and "))
	if t.name == "count_batch" || t.name == "count_queue" {
		return x.count(ctx, tx, t, where, slices.Concat(r.place, was))
	}
	res, err := tx.ExecContext(ctx, tx.Rebind("update "+t.name+" set "+strings.Join(sets, ", ")+where), slices.Concat(args, r.place, was)...)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 || t.name != "mail" {
		return err // somebody has changed it meanwhile: called again, it is found again
	}
	return x.terms(ctx, tx, t, r)
}

// count moves a count to what it is a count of now, where there may be one already.
func (x *eraser) count(ctx context.Context, tx *sqlx.Tx, t eraseTable, where string, args []any) error {
	columns, key, add := "team, mail_server, priority, kind, status, second, n", "team, mail_server, priority, kind, status, second", "n = t.n + excluded.n"
	if t.name == "count_batch" {
		columns, key = "batch_id, team, caller, status, waiting, doubtful, n, first, last", "batch_id, team, caller, status, waiting, doubtful"
		add += ", first = case when t.first < excluded.first then t.first else coalesce(excluded.first, t.first) end" +
			", last = case when t.last > excluded.last then t.last else coalesce(excluded.last, t.last) end"
	}
	var gone []map[string]any
	rows, err := tx.QueryxContext(ctx, tx.Rebind("delete from "+t.name+where+" returning "+columns), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		values := map[string]any{}
		if err := rows.MapScan(values); err != nil {
			return err
		}
		gone = append(gone, values)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, values := range gone {
		var args []any
		for _, c := range strings.Split(columns, ", ") {
			v := values[c]
			if b, ok := v.([]byte); ok {
				v = string(b)
			}
			if text, ok := v.(string); ok {
				v = x.text.replace(text)
			}
			args = append(args, v)
		}
		q := fmt.Sprintf("insert into %s as t (%s) values (?%s) on conflict (%s) do update set %s", t.name, columns, strings.Repeat(", ?", len(args)-1), key, add)
		if _, err := tx.ExecContext(ctx, tx.Rebind(q), args...); err != nil {
			return err
		}
	}
	return nil
}

// terms lets a mail be found by what it says now.
func (x *eraser) terms(ctx context.Context, tx *sqlx.Tx, t eraseTable, r named) error {
	id, err := uuid.Parse(r.id)
	if err != nil {
		return err
	}
	of := func(as func(string) string) []mailTerm {
		p := purgeRow{ID: id}
		for i, c := range t.columns {
			if r.texts[i] == nil {
				continue
			}
			switch text := as(*r.texts[i]); c.Column {
			case "reference":
				p.Reference.String = text
			case "message_id":
				p.MessageID.String = text
			case "recipients":
				p.Recipients = []byte(text)
			case "labels":
				p.Labels = []byte(text)
			}
		}
		var out []mailTerm
		for _, term := range p.terms() {
			out = append(out, mailTerm{term, id})
		}
		return out
	}
	was, now := of(strings.Clone), of(x.text.replace)
	gone := slices.DeleteFunc(was, func(m mailTerm) bool { return slices.Contains(now, m) })
	if len(gone) == 0 {
		return nil
	}
	if err := x.s.dropTerms(ctx, tx, gone); err != nil {
		return err
	}
	b, err := json.Marshal(now)
	if err != nil {
		return err
	}
	_, err = x.s.q.in(ctx, tx, "walk_terms").ExecContext(ctx, string(b))
	return err
}

// held looks which finished mails that name the address a legal hold keeps. None is placed
// until tx has ended.
func (x *eraser) held(ctx context.Context, tx *sqlx.Tx, page []named) error {
	var name string
	if err := x.s.q.in(ctx, tx, "holder_lock").GetContext(ctx, &name); err != nil {
		return err
	}
	var ids []uuid.UUID
	for _, r := range page {
		if id, err := uuid.Parse(r.id); err == nil {
			ids = append(ids, id)
		}
	}
	var free []uuid.UUID
	if err := x.s.q.in(ctx, tx, "purge_free").SelectContext(ctx, &free, idList(ids)); err != nil {
		return err
	}
	for _, id := range ids {
		switch {
		case slices.Contains(free, id), slices.Contains(x.refused.Held, id):
		case !x.dry:
			return &EraseRefusedError{Held: []uuid.UUID{id}} // placed meanwhile
		case len(x.refused.Held) < mostRefused:
			x.refused.Held = append(x.refused.Held, id)
		}
	}
	return nil
}

// audit erases the address in a page of rows of the audit log. Another row says how they read
// since, so that the chain still shows who else has changed one.
func (x *eraser) audit(ctx context.Context, page []named) error {
	if x.dry {
		return nil
	}
	ids := make(map[string]bool, len(page))
	for _, r := range page {
		ids[r.id] = true
	}
	if _, err := x.s.AuditHead(ctx); err != nil { // what is not linked cannot be vouched for
		return err
	}
	return x.s.workTx(ctx, func(tx *sqlx.Tx) error {
		digests := map[string]string{}
		for id := range ids {
			var r auditRecord
			q := "select id, seq, actor, action, team, target, reason, cast(detail as text) as detail from audit where id = " + id
			if err := tx.GetContext(ctx, &r, q); err != nil {
				return err
			}
			for _, text := range []*string{&r.Actor, &r.Action, &r.Team, &r.Target, &r.Reason, &r.Detail.String} {
				*text = x.text.replace(*text)
			}
			if _, err := x.s.q.in(ctx, tx, "audit_redact").ExecContext(ctx, r.Actor, r.Action, r.Team, r.Target, r.Reason, r.Detail, x.id, r.ID); err != nil {
				return err
			}
			digests[fmt.Sprint(r.Seq.Int64)] = r.digest()
		}
		return x.s.auditDetail(ctx, tx, x.e.Audit, "", x.e.Pseudonym, map[string]any{"rows": digests})
	})
}

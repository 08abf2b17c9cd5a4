package store

import (
	"context"
	"encoding/json"
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
	place   string // what finds a row again, as a text
	columns []eraseColumn
}

type eraseColumn struct{ Table, Column, Type string }

// tables are all tables with texts, as the database has them: a column that a later version
// adds is erased too.
func (x *eraser) tables(ctx context.Context) (tables []eraseTable, err error) {
	q := `select table_name as "table", column_name as "column", data_type as "type" from information_schema.columns
  where table_schema = current_schema() and data_type in ('text', 'character varying', 'json', 'jsonb') order by 1, ordinal_position`
	if x.s.Dialect() == "sqlite" {
		q = `select m.name as "table", c.name as "column", case when m.sql like '%without rowid%' then 'key' else 'row' end as "type"
  from sqlite_schema m, pragma_table_info(m.name) c where m.type = 'table' and lower(c.type) = 'text' order by 1, c.cid`
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
			place := "ctid"
			if c.Type == "row" {
				place = "rowid"
			} else if c.Type == "key" {
				place = "id"
			}
			tables = append(tables, eraseTable{name: c.Table, place: place})
		}
		t := &tables[len(tables)-1]
		t.columns = append(t.columns, c)
	}
	return tables, nil
}

// named is a row that names the address.
type named struct {
	place string
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
	case "mail", "due", "archive", "legal_hold", "token", "upload":
		id = "cast(t.id as text)"
	case "mail_server":
		id = "t.name"
	case "audit":
		id = "cast(t.id as text)"
	}
	// of a mail: it is not finished; of a setting: it is in use
	stays := "1 = 0"
	switch t.name {
	case "mail":
		stays = "exists (select 1 from due d where d.id = t.id)"
	case "due":
		stays = "1 = 1"
	case "mail_server":
		stays = "t.delete_time is null"
	case "token":
		stays = "t.revoke_time is null"
	}
	q := fmt.Sprintf("select cast(t.%s as text), %s, %s, %s from %s t where %s", t.place, id, stays, strings.Join(texts, ", "), t.name, strings.Join(conds, " or "))
	rs, err := x.s.read.QueryxContext(patient(ctx, eraseStatement), x.s.read.Rebind(q), w.args...)
	if err != nil {
		return nil, err
	}
	defer rs.Close()
	for rs.Next() {
		r := named{texts: make([]*string, len(t.columns))}
		var keep bool
		into := []any{&r.place, &r.id, &keep}
		for i := range r.texts {
			into = append(into, &r.texts[i])
		}
		if err := rs.Scan(into...); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(r.texts, func(text *string) bool { return text != nil && x.text.replace(*text) != *text }) {
			continue
		}
		if !keep {
			x.out.Texts[t.name]++
			out = append(out, r)
			continue
		}
		switch mail, err := uuid.Parse(r.id); {
		case t.name == "mail_server":
			x.refused.Settings = append(x.refused.Settings, "mail server "+r.id)
		case t.name == "token":
			x.refused.Settings = append(x.refused.Settings, "token "+r.id)
		case err == nil:
			x.waits(mail)
		}
	}
	return out, rs.Err()
}

// rewrite puts the pseudonym into a page of rows, each only if it still reads as it did.
func (x *eraser) rewrite(ctx context.Context, t eraseTable, page []named) error {
	if t.name == "mail" || t.name == "archive" {
		if err := x.held(ctx, page); err != nil {
			return err
		}
	}
	if x.dry {
		return nil
	}
	return x.s.workTx(ctx, func(tx *sqlx.Tx) error {
		for _, r := range page {
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
				set := c.Column + " = ?"
				if c.Type == "json" || c.Type == "jsonb" {
					set = c.Column + " = cast(? as " + c.Type + ")"
				}
				sets, args = append(sets, set), append(args, now)
				same, was = append(same, "cast("+c.Column+" as text) = ?"), append(was, *r.texts[i])
			}
			place := t.place + " = ?"
			if t.place == "ctid" {
				place = "ctid = cast(? as tid)"
			}
			q := fmt.Sprintf("update %s set %s where %s and %s", t.name, strings.Join(sets, ", "), place, strings.Join(same, " and "))
			res, err := tx.ExecContext(ctx, tx.Rebind(q), slices.Concat(args, []any{r.place}, was)...)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil || n == 0 || t.name != "mail" {
				if err != nil {
					return err
				}
				continue // somebody has changed it meanwhile: called again, it is found again
			}
			if err := x.terms(ctx, tx, t, r); err != nil {
				return err
			}
		}
		return nil
	})
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

// held looks which finished mails that name the address a legal hold keeps.
func (x *eraser) held(ctx context.Context, page []named) error {
	var ids []uuid.UUID
	for _, r := range page {
		if id, err := uuid.Parse(r.id); err == nil {
			ids = append(ids, id)
		}
	}
	var free []uuid.UUID
	if err := x.s.q.get("purge_free").SelectContext(ctx, &free, idList(ids)); err != nil {
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

// Package access says who a caller is and what that one may do.
//
// A caller is known by a token, or by the name in a client certificate. [Guard] decides in
// three places:
//
//   - The tap, which sees the headers of a call before its body is read. It refuses tokens that
//     are unknown, expired or revoked. It works in memory alone, because it holds the
//     connection's lock.
//   - The interceptors. They compare the caller's roles with the [Policy] of the method that
//     grpc has matched, before the request is validated. A method without a policy is refused,
//     and [CheckServices] lets no service start with one. Then they look at the team that the
//     request names, and put the caller's only team in where none is named.
//   - The database. What a request does not say, such as the team of a mail by its id, stands
//     in the statement: api takes the [store.Scope] from the [Caller] of the context. A context
//     without a caller has the zero scope, which sees nothing.
//
// [Book] holds all tokens in memory and reads them again every two seconds, so that a token
// that was revoked ends on every replica and no call asks the database. While the database is
// away the last reading holds, and expiry is checked all the same. After five minutes what
// only an administrator may do is refused, and sending goes on.
//
// The package leaves it to [Guard.Charge] how often a caller may call, does not write the audit
// log, and knows no mail.
package access

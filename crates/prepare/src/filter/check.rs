//! Expressions bound to the columns of a table: types are checked once, then batches of rows are judged.
//!
//! A bound expression is a tree of closures, one kind for each type, so that a batch is computed column by column
//! without looking at types again. Whole numbers are exact up to 38 digits and stay at that limit beyond it; `/`
//! divides as floating-point numbers do, and dividing by zero gives null. Nulls follow SQL: what is computed of a null
//! is null, `false and null` is false, `true or null` is true.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType, RecordBatch};
use arrow_schema::{DataType, Schema};
use half::f16;

use super::expression::{Arithmetic, Comparison, Expression, ExpressionError, Function, Kind, Literal, Node};
use crate::names::nearest;

/// Values of the rows of a batch, or a single one that holds for all of them.
type Vector<T> = Vec<Option<T>>;
type Eval<T> = Box<dyn Fn(&RecordBatch) -> Vector<T> + Send + Sync>;
type EvalText = Box<dyn for<'a> Fn(&'a RecordBatch) -> Vector<Cow<'a, str>> + Send + Sync>;

/// An expression that can judge the rows of tables with one schema.
pub struct Condition {
    eval: Eval<bool>,
}

impl Condition {
    /// Binds `expression` to the columns of `schema`.
    ///
    /// # Errors
    /// [`ExpressionError`] for unknown columns, types that do not go together, and an expression that is no condition.
    pub fn new(expression: &Expression, schema: &Schema) -> Result<Self, ExpressionError> {
        let binder = Binder { text: &expression.text, schema };
        let eval = binder.condition(&expression.root)?;
        Ok(Condition { eval })
    }

    /// The verdict on each row of `batch`, which must have the schema that the condition was made for; `None` is null.
    pub fn judge(&self, batch: &RecordBatch) -> Vec<Option<bool>> {
        let verdicts = (self.eval)(batch);
        match verdicts.len() == batch.num_rows() {
            true => verdicts,
            false => vec![verdicts.first().copied().flatten(); batch.num_rows()],
        }
    }
}

/// A bound part, by type.
enum Typed {
    Bool(Eval<bool>),
    Int(Eval<i128>),
    Float(Eval<f64>),
    Text(EvalText),
    /// The literal `null`.
    Null,
    /// A column that only `is null` understands: index and type.
    Other(usize, DataType),
}

impl Typed {
    fn describe(&self) -> String {
        match self {
            Typed::Bool(_) => "true or false".to_owned(),
            Typed::Int(_) => "a whole number".to_owned(),
            Typed::Float(_) => "a number".to_owned(),
            Typed::Text(_) => "a text".to_owned(),
            Typed::Null => "null".to_owned(),
            Typed::Other(_, kind) => format!("of type {kind}, which can only be tested with `is null`"),
        }
    }
}

/// Two parts brought to one type.
enum Pair {
    Bool(Eval<bool>, Eval<bool>),
    Int(Eval<i128>, Eval<i128>),
    Float(Eval<f64>, Eval<f64>),
    Text(EvalText, EvalText),
}

/// Joins row by row; a vector of length 1 holds for all rows.
fn zip<A, B, C>(
    one: Vector<A>,
    two: Vector<B>,
    mut join: impl FnMut(&Option<A>, &Option<B>) -> Option<C>,
) -> Vector<C> {
    match (one.len(), two.len()) {
        (a, b) if a == b => one.iter().zip(&two).map(|(a, b)| join(a, b)).collect(),
        (1, _) => two.iter().map(|b| join(&one[0], b)).collect(),
        _ => one.iter().map(|a| join(a, &two[0])).collect(),
    }
}

fn map<A, B>(values: Vector<A>, mut each: impl FnMut(A) -> Option<B>) -> Vector<B> {
    values.into_iter().map(|value| value.and_then(&mut each)).collect()
}

fn both<A: Clone, B>(join: impl Fn(&A, &A) -> B) -> impl Fn(&Option<A>, &Option<A>) -> Option<B> {
    move |a, b| a.as_ref().zip(b.as_ref()).map(|(a, b)| join(a, b))
}

fn to_float(eval: Eval<i128>) -> Eval<f64> {
    Box::new(move |batch| map(eval(batch), |number| Some(number as f64)))
}

fn constant<T: Clone + Send + Sync + 'static>(value: T) -> Eval<T> {
    Box::new(move |_| vec![Some(value.clone())])
}

struct Binder<'a> {
    text: &'a str,
    schema: &'a Schema,
}

type Bound<T> = Result<T, ExpressionError>;

impl Binder<'_> {
    fn error(&self, span: &Range<usize>, message: impl Into<String>) -> ExpressionError {
        ExpressionError::new(self.text, span.start, message)
    }

    fn condition(&self, node: &Node) -> Bound<Eval<bool>> {
        match self.bind(node)? {
            Typed::Bool(eval) => Ok(eval),
            other => {
                Err(self.error(&node.span, format!("a condition was expected here, this is {}", other.describe())))
            }
        }
    }

    fn text(&self, node: &Node, what: &str) -> Bound<EvalText> {
        match self.bind(node)? {
            Typed::Text(eval) => Ok(eval),
            other => Err(self.error(&node.span, format!("{what} wants a text, this is {}", other.describe()))),
        }
    }

    fn bind(&self, node: &Node) -> Bound<Typed> {
        Ok(match &node.kind {
            Kind::Literal(literal) => match literal.clone() {
                Literal::Null => Typed::Null,
                Literal::Bool(value) => Typed::Bool(constant(value)),
                Literal::Int(value) => Typed::Int(constant(value)),
                Literal::Float(value) => Typed::Float(constant(value)),
                Literal::Text(value) => Typed::Text(Box::new(move |_| vec![Some(Cow::Owned(value.clone()))])),
            },
            Kind::Column(name) => self.column(name, &node.span)?,
            Kind::Not(inner) => {
                let inner = self.condition(inner)?;
                Typed::Bool(Box::new(move |batch| map(inner(batch), |value| Some(!value))))
            }
            Kind::All(parts) => self.logic(parts, false)?,
            Kind::Any(parts) => self.logic(parts, true)?,
            Kind::Negate(inner) => match self.bind(inner)? {
                Typed::Int(eval) => Typed::Int(Box::new(move |batch| map(eval(batch), |n| Some(n.saturating_neg())))),
                Typed::Float(eval) => Typed::Float(Box::new(move |batch| map(eval(batch), |n| Some(-n)))),
                other => {
                    return Err(self.error(&node.span, format!("`-` wants a number, this is {}", other.describe())));
                }
            },
            Kind::Compare(comparison, left, right) => self.compare(*comparison, left, right)?,
            Kind::Arithmetic(operator, left, right) => self.arithmetic(*operator, left, right)?,
            Kind::In(left, list) => self.membership(left, list)?,
            Kind::IsNull(inner) => self.is_null(inner)?,
            Kind::Search(inner, regex) => {
                let (inner, regex) = (self.text(inner, "a pattern")?, regex.clone());
                Typed::Bool(Box::new(move |batch| map(inner(batch), |text| Some(regex.is_match(&text)))))
            }
            Kind::Call(function, arguments) => self.call(*function, arguments, &node.span)?,
        })
    }

    /// `and`, or `or` if `decisive` is true: a part with the decisive value decides, whatever is null.
    fn logic(&self, parts: &[Node], decisive: bool) -> Bound<Typed> {
        let parts = parts.iter().map(|part| self.condition(part)).collect::<Bound<Vec<_>>>()?;
        Ok(Typed::Bool(Box::new(move |batch| {
            let join = |a: &Option<bool>, b: &Option<bool>| match (*a, *b) {
                (Some(a), _) if a == decisive => Some(decisive),
                (_, Some(b)) if b == decisive => Some(decisive),
                (Some(_), Some(_)) => Some(!decisive),
                _ => None,
            };
            parts.iter().map(|part| part(batch)).reduce(|a, b| zip(a, b, join)).unwrap_or_default()
        })))
    }

    fn column(&self, name: &str, span: &Range<usize>) -> Bound<Typed> {
        let Some((index, field)) = self.schema.column_with_name(name) else {
            let names = || self.schema.fields().iter().map(|field| field.name().as_str());
            let hint = match nearest(name, names()) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => String::new(),
            };
            let all = names().take(30).collect::<Vec<_>>().join(", ");
            return Err(self.error(span, format!("there is no column `{name}`{hint}; there are: {all}")));
        };
        Ok(column(index, field.data_type()))
    }

    /// Brings two parts to one type, for `what`.
    fn pair(&self, left: &Node, right: &Node, what: &str) -> Bound<Pair> {
        Ok(match (self.bind(left)?, self.bind(right)?) {
            (Typed::Bool(a), Typed::Bool(b)) => Pair::Bool(a, b),
            (Typed::Int(a), Typed::Int(b)) => Pair::Int(a, b),
            (Typed::Int(a), Typed::Float(b)) => Pair::Float(to_float(a), b),
            (Typed::Float(a), Typed::Int(b)) => Pair::Float(a, to_float(b)),
            (Typed::Float(a), Typed::Float(b)) => Pair::Float(a, b),
            (Typed::Text(a), Typed::Text(b)) => Pair::Text(a, b),
            (Typed::Null, _) => return Err(self.error(&left.span, "nothing equals null; write `... is null`")),
            (_, Typed::Null) => return Err(self.error(&right.span, "nothing equals null; write `... is null`")),
            (a, b) => {
                let message = format!("{what}: the left side is {}, the right side {}", a.describe(), b.describe());
                return Err(self.error(&right.span, message));
            }
        })
    }

    fn compare(&self, comparison: Comparison, left: &Node, right: &Node) -> Bound<Typed> {
        fn against<T: PartialOrd>(comparison: Comparison) -> fn(&T, &T) -> bool {
            match comparison {
                Comparison::Equal => |a, b| a == b,
                Comparison::NotEqual => |a, b| a != b,
                Comparison::Less => |a, b| a < b,
                Comparison::LessOrEqual => |a, b| a <= b,
                Comparison::Greater => |a, b| a > b,
                Comparison::GreaterOrEqual => |a, b| a >= b,
            }
        }
        Ok(Typed::Bool(match self.pair(left, right, "these cannot be compared")? {
            Pair::Bool(a, b) => {
                let test = against(comparison);
                Box::new(move |batch| zip(a(batch), b(batch), both(test)))
            }
            Pair::Int(a, b) => {
                let test = against(comparison);
                Box::new(move |batch| zip(a(batch), b(batch), both(test)))
            }
            Pair::Float(a, b) => {
                let test = against(comparison);
                Box::new(move |batch| zip(a(batch), b(batch), both(test)))
            }
            Pair::Text(a, b) => Box::new(move |batch| zip(a(batch), b(batch), both(against(comparison)))),
        }))
    }

    fn arithmetic(&self, operator: Arithmetic, left: &Node, right: &Node) -> Bound<Typed> {
        let pair = match self.pair(left, right, "these are not both numbers")? {
            // A quotient of whole numbers is in general none.
            Pair::Int(a, b) if operator == Arithmetic::Divide => Pair::Float(to_float(a), to_float(b)),
            pair => pair,
        };
        Ok(match pair {
            Pair::Int(a, b) => {
                let compute: fn(&i128, &i128) -> i128 = match operator {
                    Arithmetic::Add => |a, b| a.saturating_add(*b),
                    Arithmetic::Subtract => |a, b| a.saturating_sub(*b),
                    Arithmetic::Multiply | Arithmetic::Divide => |a, b| a.saturating_mul(*b),
                };
                Typed::Int(Box::new(move |batch| zip(a(batch), b(batch), both(compute))))
            }
            Pair::Float(a, b) => {
                let compute: fn(f64, f64) -> Option<f64> = match operator {
                    Arithmetic::Add => |a, b| Some(a + b),
                    Arithmetic::Subtract => |a, b| Some(a - b),
                    Arithmetic::Multiply => |a, b| Some(a * b),
                    Arithmetic::Divide => |a, b| (b != 0.0).then(|| a / b),
                };
                Typed::Float(Box::new(move |batch| zip(a(batch), b(batch), |a, b| compute((*a)?, (*b)?))))
            }
            Pair::Bool(..) | Pair::Text(..) => {
                return Err(self.error(&left.span, "this is no number, so it cannot be calculated with"));
            }
        })
    }

    fn membership(&self, left: &Node, list: &[(Literal, Range<usize>)]) -> Bound<Typed> {
        let wrong = |span: &Range<usize>, bound: &Typed| {
            self.error(span, format!("this cannot be in the list: the left side is {}", bound.describe()))
        };
        let bound = self.bind(left)?;
        let mut texts = HashSet::new();
        let mut numbers = Vec::new();
        let mut truths = HashSet::new();
        let mut whole = HashSet::new();
        for (literal, span) in list {
            match (literal, &bound) {
                (Literal::Text(text), Typed::Text(_)) => {
                    texts.insert(text.clone());
                }
                (Literal::Int(number), Typed::Int(_)) => {
                    whole.insert(*number);
                }
                (Literal::Int(number), Typed::Float(_)) => numbers.push(*number as f64),
                // A whole number is equal to no other.
                (Literal::Float(number), Typed::Int(_)) if number.fract() != 0.0 => {}
                (Literal::Float(number), Typed::Int(_)) => {
                    whole.insert(*number as i128);
                }
                (Literal::Float(number), Typed::Float(_)) => numbers.push(*number),
                (Literal::Bool(truth), Typed::Bool(_)) => {
                    truths.insert(*truth);
                }
                _ => return Err(wrong(span, &bound)),
            }
        }
        numbers.sort_by(f64::total_cmp);
        Ok(Typed::Bool(match bound {
            Typed::Text(eval) => Box::new(move |batch| map(eval(batch), |text| Some(texts.contains(&*text)))),
            Typed::Int(eval) => Box::new(move |batch| map(eval(batch), |number| Some(whole.contains(&number)))),
            Typed::Bool(eval) => Box::new(move |batch| map(eval(batch), |truth| Some(truths.contains(&truth)))),
            Typed::Float(eval) => Box::new(move |batch| {
                // Both zeros are equal, but not in the total order of the search.
                let found = |number: f64| numbers.binary_search_by(|other| other.total_cmp(&number)).is_ok();
                map(eval(batch), |number| Some(if number == 0.0 { found(0.0) || found(-0.0) } else { found(number) }))
            }),
            Typed::Null | Typed::Other(..) => return Err(wrong(&left.span, &bound)),
        }))
    }

    fn is_null(&self, inner: &Node) -> Bound<Typed> {
        fn nulls<T>(values: &[Option<T>]) -> Vector<bool> {
            values.iter().map(|value| Some(value.is_none())).collect()
        }
        Ok(Typed::Bool(match self.bind(inner)? {
            Typed::Bool(eval) => Box::new(move |batch| nulls(&eval(batch))),
            Typed::Int(eval) => Box::new(move |batch| nulls(&eval(batch))),
            Typed::Float(eval) => Box::new(move |batch| nulls(&eval(batch))),
            Typed::Text(eval) => Box::new(move |batch| nulls(&eval(batch))),
            Typed::Null => constant(true),
            Typed::Other(index, _) => Box::new(move |batch| {
                let nulls = batch.column(index).logical_nulls();
                let is_null = |row| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
                (0..batch.num_rows()).map(|row| Some(is_null(row))).collect()
            }),
        }))
    }

    fn call(&self, function: Function, arguments: &[Node], span: &Range<usize>) -> Bound<Typed> {
        let first = &arguments[0];
        Ok(match function {
            Function::Length => {
                let text = self.text(first, "`length`")?;
                Typed::Int(Box::new(move |batch| map(text(batch), |text| Some(text.chars().count() as i128))))
            }
            Function::Lower => {
                let text = self.text(first, "`lower`")?;
                Typed::Text(Box::new(move |batch| map(text(batch), |text| Some(Cow::Owned(text.to_lowercase())))))
            }
            Function::Upper => {
                let text = self.text(first, "`upper`")?;
                Typed::Text(Box::new(move |batch| map(text(batch), |text| Some(Cow::Owned(text.to_uppercase())))))
            }
            Function::Abs => match self.bind(first)? {
                Typed::Int(eval) => Typed::Int(Box::new(move |batch| map(eval(batch), |n| Some(n.saturating_abs())))),
                Typed::Float(eval) => Typed::Float(Box::new(move |batch| map(eval(batch), |n| Some(n.abs())))),
                other => {
                    return Err(self.error(&first.span, format!("`abs` wants a number, this is {}", other.describe())));
                }
            },
            Function::Min | Function::Max | Function::Coalesce => self.fold(function, arguments, span)?,
        })
    }

    /// The functions of several arguments of one type.
    fn fold(&self, function: Function, arguments: &[Node], span: &Range<usize>) -> Bound<Typed> {
        let mut bound = Vec::new();
        for argument in arguments {
            bound.push((self.bind(argument)?, &argument.span));
        }
        let floats = bound.iter().any(|(argument, _)| matches!(argument, Typed::Float(_)));
        let (mut whole, mut numbers, mut texts, mut truths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (argument, argument_span) in bound {
            match argument {
                Typed::Int(eval) if floats => numbers.push(to_float(eval)),
                Typed::Int(eval) => whole.push(eval),
                Typed::Float(eval) => numbers.push(eval),
                Typed::Text(eval) => texts.push(eval),
                Typed::Bool(eval) if function == Function::Coalesce => truths.push(eval),
                other => {
                    let message = format!("a number or text was expected here, this is {}", other.describe());
                    return Err(self.error(argument_span, message));
                }
            }
        }
        match [whole.len(), numbers.len(), texts.len(), truths.len()].map(|count| count == arguments.len()) {
            [true, ..] => Ok(Typed::Int(folded(function, whole))),
            [_, true, ..] => Ok(Typed::Float(folded(function, numbers))),
            [_, _, true, _] => Ok(Typed::Text(Box::new(move |batch| {
                let values = texts.iter().map(|eval| eval(batch));
                values.reduce(|a, b| zip(a, b, |a, b| choose(function, a, b))).unwrap_or_default()
            }))),
            [_, _, _, true] => Ok(Typed::Bool(folded(function, truths))),
            _ => Err(self.error(span, "the arguments of this function are not of one type")),
        }
    }
}

fn folded<T: PartialOrd + Clone + 'static>(function: Function, evals: Vec<Eval<T>>) -> Eval<T> {
    Box::new(move |batch| {
        let values = evals.iter().map(|eval| eval(batch));
        values.reduce(|a, b| zip(a, b, |a, b| choose(function, a, b))).unwrap_or_default()
    })
}

/// The smaller, the larger, or the first that is not null.
fn choose<T: PartialOrd + Clone>(function: Function, a: &Option<T>, b: &Option<T>) -> Option<T> {
    match (function, a, b) {
        (Function::Coalesce, a, b) => a.clone().or_else(|| b.clone()),
        (Function::Min, Some(a), Some(b)) => Some(if b < a { b.clone() } else { a.clone() }),
        (_, Some(a), Some(b)) => Some(if b > a { b.clone() } else { a.clone() }),
        _ => None,
    }
}

fn column(index: usize, kind: &DataType) -> Typed {
    fn whole<T: ArrowPrimitiveType<Native: Into<i128>>>(index: usize) -> Typed {
        Typed::Int(Box::new(move |batch| {
            batch.column(index).as_primitive::<T>().iter().map(|value| value.map(Into::into)).collect()
        }))
    }
    fn float<T: ArrowPrimitiveType>(index: usize, to: fn(T::Native) -> f64) -> Typed {
        Typed::Float(Box::new(move |batch| {
            batch.column(index).as_primitive::<T>().iter().map(|value| value.map(to)).collect()
        }))
    }
    match kind {
        DataType::Boolean => Typed::Bool(Box::new(move |batch| batch.column(index).as_boolean().iter().collect())),
        DataType::Int8 => whole::<Int8Type>(index),
        DataType::Int16 => whole::<Int16Type>(index),
        DataType::Int32 => whole::<Int32Type>(index),
        DataType::Int64 => whole::<Int64Type>(index),
        DataType::UInt8 => whole::<UInt8Type>(index),
        DataType::UInt16 => whole::<UInt16Type>(index),
        DataType::UInt32 => whole::<UInt32Type>(index),
        DataType::UInt64 => whole::<UInt64Type>(index),
        DataType::Float16 => float::<Float16Type>(index, f16::to_f64),
        DataType::Float32 => float::<Float32Type>(index, f64::from),
        DataType::Float64 => float::<Float64Type>(index, |value| value),
        kind if is_text(kind) => Typed::Text(Box::new(move |batch| texts(batch.column(index).as_ref()))),
        DataType::Dictionary(_, values) if is_text(values) => {
            Typed::Text(Box::new(move |batch| dictionary_texts(batch.column(index).as_ref())))
        }
        other => Typed::Other(index, other.clone()),
    }
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn texts(array: &dyn Array) -> Vector<Cow<'_, str>> {
    let borrow = |text: Option<_>| text.map(Cow::Borrowed);
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().map(borrow).collect(),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().map(borrow).collect(),
        _ => array.as_string_view().iter().map(borrow).collect(),
    }
}

fn dictionary_texts(array: &dyn Array) -> Vector<Cow<'_, str>> {
    let dictionary = array.as_any_dictionary();
    let values = texts(dictionary.values().as_ref());
    if values.is_empty() {
        return vec![None; array.len()];
    }
    let pick = |(row, key): (usize, usize)| if array.is_null(row) { None } else { values[key].clone() };
    dictionary.normalized_keys().into_iter().enumerate().map(pick).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::types::Int8Type as Key;
    use arrow_array::{
        ArrayRef, BooleanArray, DictionaryArray, Float32Array, Int32Array, ListArray, StringArray, UInt64Array,
    };

    use super::*;

    /// Four rows, each column with one null in the last.
    fn table() -> RecordBatch {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("WIDTH", Arc::new(Int32Array::from(vec![Some(100), Some(512), Some(0), None]))),
            ("HEIGHT", Arc::new(Int32Array::from(vec![Some(200), Some(512), Some(7), Some(5)]))),
            ("similarity", Arc::new(Float32Array::from(vec![Some(0.25), Some(f32::NAN), Some(0.5), None]))),
            ("LICENSE", Arc::new(StringArray::from(vec![Some("?"), Some("CC-BY 2.0"), Some(""), None]))),
            ("hash", Arc::new(UInt64Array::from(vec![Some(u64::MAX), Some(0), Some(1), None]))),
            ("ok", Arc::new(BooleanArray::from(vec![Some(true), Some(false), Some(true), None]))),
            (
                "NSFW",
                Arc::new(
                    vec![Some("UNSURE"), Some("NSFW"), Some("UNSURE"), None]
                        .into_iter()
                        .collect::<DictionaryArray<Key>>(),
                ),
            ),
            (
                "the tags",
                Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
                    Some(vec![Some(1)]),
                    Some(vec![]),
                    Some(vec![None]),
                    None,
                ])),
            ),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn judge(text: &str) -> String {
        let table = table();
        let condition = Condition::new(&Expression::parse(text).unwrap(), &table.schema());
        let verdicts = condition.unwrap_or_else(|error| panic!("{text}: {error}")).judge(&table);
        verdicts.into_iter().map(|verdict| verdict.map_or('-', |truth| if truth { '1' } else { '0' })).collect()
    }

    #[test]
    fn conditions_judge_rows() {
        for (text, verdicts) in [
            ("WIDTH >= 100", "110-"),
            ("WIDTH = 512 or HEIGHT = 5", "0101"),
            ("WIDTH = 512 and HEIGHT = 5", "000-"),
            ("WIDTH > 1 and HEIGHT > 6", "1100"),
            ("not WIDTH >= 100", "001-"),
            ("WIDTH is null", "0001"),
            ("WIDTH IS NOT NULL", "1110"),
            ("null is null", "1111"),
            ("WIDTH / HEIGHT = 0.5", "100-"),
            ("HEIGHT / WIDTH > 0.9", "11--"),
            ("WIDTH * HEIGHT + 1 = 262145", "010-"),
            ("WIDTH - HEIGHT < -6", "101-"),
            ("-WIDTH < -1e2", "010-"),
            ("- (WIDTH) <= 0 - 100", "110-"),
            ("WIDTH + 0.5 > 100", "110-"),
            ("similarity > 0.3", "001-"),
            ("similarity != 0.25", "011-"),
            ("similarity between 0.25 and 0.5", "101-"),
            ("similarity not between 0.25 and 0.5", "010-"),
            ("similarity in (0.25, 1)", "100-"),
            ("WIDTH in (0, -0.0, 512.0, 0.5)", "011-"),
            ("LICENSE != \"?\"", "011-"),
            ("LICENSE is null or LICENSE != '?'", "0111"),
            ("LICENSE in ('?', '')", "101-"),
            ("LICENSE not in ('?', '')", "010-"),
            ("LICENSE like 'CC-BY%'", "010-"),
            ("LICENSE like 'cc-by%'", "000-"),
            ("LICENSE ilike 'cc-by___.%'", "000-"),
            ("LICENSE ilike 'cc-by__.%'", "010-"),
            ("LICENSE not like '%'", "000-"),
            ("LICENSE like '?'", "100-"),
            ("LICENSE matches '^CC-(BY|0)'", "010-"),
            ("lower(LICENSE) = 'cc-by 2.0'", "010-"),
            ("upper('?') = LICENSE", "100-"),
            ("length(LICENSE) > 0", "110-"),
            ("LICENSE < 'A'", "101-"),
            ("hash = 18446744073709551615", "100-"),
            ("hash * hash * hash > hash", "100-"),
            ("ok", "101-"),
            ("ok = false", "010-"),
            ("ok in (true)", "101-"),
            ("not ok or WIDTH > 0", "110-"),
            ("NSFW = 'UNSURE'", "101-"),
            ("NSFW in ('UNSURE', 'NSFW')", "111-"),
            ("`the tags` is null", "0001"),
            ("max(WIDTH, HEIGHT) / min(WIDTH, HEIGHT) <= 2", "11--"),
            ("min(WIDTH, 300.5, HEIGHT) = 300.5", "010-"),
            ("max('A', LICENSE) = 'A'", "101-"),
            ("abs(WIDTH - HEIGHT) = 100", "100-"),
            ("abs(-0.5) = 0.5", "1111"),
            ("coalesce(WIDTH, 0) >= 100", "1100"),
            ("coalesce(WIDTH, 0.5) = 0.5", "0001"),
            ("coalesce(LICENSE, 'none') = 'none'", "0001"),
            ("coalesce(ok, false)", "1010"),
            ("true", "1111"),
            ("1 = 2", "0000"),
            ("false and WIDTH > 0", "0000"),
            ("true or WIDTH > 0", "1111"),
            ("(WIDTH > 0) = ok", "100-"),
        ] {
            assert_eq!(judge(text), verdicts, "{text}");
        }
    }

    #[test]
    fn wrong_types_and_names_are_refused_before_a_row_is_read() {
        let schema = table().schema();
        for (text, message) in [
            ("WIDHT > 1", "there is no column `WIDHT`; did you mean `WIDTH`?"),
            ("punsafe < 1", "there is no column `punsafe`; there are: WIDTH, HEIGHT"),
            ("WIDTH", "a condition was expected here, this is a whole number"),
            ("LICENSE", "a condition was expected here, this is a text"),
            ("not WIDTH", "a condition was expected here"),
            ("WIDTH = '512'", "these cannot be compared: the left side is a whole number, the right side a text"),
            ("ok > 1", "the left side is true or false, the right side a whole number"),
            ("WIDTH = null", "nothing equals null"),
            ("null = WIDTH", "nothing equals null"),
            ("LICENSE + LICENSE = 'a'", "this is no number"),
            ("WIDTH + LICENSE > 1", "these are not both numbers"),
            ("-LICENSE = 1", "`-` wants a number, this is a text"),
            ("WIDTH in ('a')", "this cannot be in the list: the left side is a whole number"),
            ("LICENSE in (1)", "this cannot be in the list: the left side is a text"),
            ("`the tags` in (1)", "which can only be tested with `is null`"),
            ("`the tags` = 1", "which can only be tested with `is null`"),
            ("WIDTH like '5%'", "a pattern wants a text, this is a whole number"),
            ("length(WIDTH) > 1", "`length` wants a text"),
            ("lower(ok) = 'a'", "`lower` wants a text"),
            ("abs(LICENSE) = 1", "`abs` wants a number"),
            ("max(WIDTH, LICENSE) = 1", "the arguments of this function are not of one type"),
            ("max(ok, ok)", "a number or text was expected here"),
            ("coalesce(WIDTH, null) = 1", "a number or text was expected here, this is null"),
        ] {
            let error = Condition::new(&Expression::parse(text).unwrap(), &schema).err().expect(text).to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    /// Words and signs of the grammar, so that random rows of them are often expressions.
    const WORDS: [&str; 32] = [
        "WIDTH",
        "similarity",
        "LICENSE",
        "ok",
        "NSFW",
        "`the tags`",
        "1",
        "2.5",
        "'a'",
        "\"?\"",
        "null",
        "true",
        "(",
        ")",
        ",",
        "and",
        "or",
        "not",
        "in",
        "is",
        "like",
        "between",
        "=",
        "<",
        "+",
        "-",
        "*",
        "/",
        "max",
        "length",
        "coalesce",
        "é",
    ];

    proptest::proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(words in proptest::collection::vec(0..WORDS.len(), 0..24)) {
            let text = words.iter().map(|word| WORDS[*word]).collect::<Vec<_>>().join(" ");
            let table = table();
            if let Ok(expression) = Expression::parse(&text)
                && let Ok(condition) = Condition::new(&expression, &table.schema())
            {
                assert_eq!(condition.judge(&table).len(), 4);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = Expression::parse(&text);
        }
    }
}

"""What stands behind an answer and only explains it, and other readings of a text's end."""

import pytest

from lightning_pspo.grading import grade
from tests.support.verdicts import cases

REMARKS = r"""
? How long can Erica stay on it? => 65
+ She can stay 65 minutes, which is 55 minutes longer than Dave. | She can stay 65 minutes (1.3 * 50 = 65).
+ So x = 65.⏎⏎Check: 65 / 1.3 = 50 ✓ | x = 65⏎⏎Let's verify: 65 - 15 = 50. Correct!
+ x = 65. You can verify this with 10 minutes: 10 * 6.5 = 65 and 6 * 10 = 60.
- So x = 50.⏎⏎Check: 50, so the answer is 55. | She can stay 50 minutes (not 65).
? What is the chance? => \frac{11}{36}
+ It is 11/36 (not 25/36).
+ It is 11/36. Note that 25/36 is the chance of none.
- It is 25/36 (not 11/36). | It is 25/36. Note that we want the rest, so 1/36. | It is 11/36. (I meant 1/36.)
- It is 11/36. Note that 1/36 is correct. | It is 11/36. Note that 1/36 is what is asked.
? How many are there in all? => 48
+ 16⏎32⏎-----⏎Sum: 48 | 48⏎---⏎Is there anything else?
? How much will she make? => 50
+ She will make $50, compared to $40 there. | She will make $50, including the $2 tip.
+ She makes $50, while Bo makes $40.
+ She will make $50, since 25 boxes cost $2 each. | She makes 25 x 2 = $50, an average of $5 a day.
- She will make $40, compared to $50 there. | She will make $40, since 40 < 50. | She has $50 because she got 10, so 60.
? How many female ducks are there? => 6
+ There are 20 ducks, of which 6 are female.
- There are 6 ducks, of which 5 are female.
? What is the largest value? => \frac{31}{5}
+ It is 217/35 = 31/5, attained at (a, b) = (2, 3). | It is $\frac{31}{5}$, which is about 6.2.
+ It is 31/5 (about 6.2).
- It is 30/5, attained at a = 31/5.
? Simplify. => 33\sqrt{30}
+ It is 33√30 (about 180.7). | It is 33√30 ≈ 180.7.
- It is 180.7.
? Which vector? => \begin{pmatrix} 6 \\ -15 \end{pmatrix}
+ It maps it to $\begin{pmatrix} 6 \\ -15 \end{pmatrix}$ because the factor is $-3$.
? At what time, in Denver, does the train that leaves at 2 p.m. arrive? => 9\text{ a.m.}
+ It arrives at 9 a.m. | It arrives at 9 AM (11 AM in New York). | It arrives at 9:00 a.m.
- It arrives at 9 p.m. | It arrives at 11 AM (9 AM in Denver).
"""
READINGS = r"""
? What is sin B? => \frac{\sqrt{39}}{8}
+ AC = √(64 - 25) = √39, so sin B = AC/BC = √39/8. | sin B = √39/8
- sin B = √39/4. | sin B = 39/8.
? Find y. => 6t - 5
+ y = -3 + 6t - 2 = 6t - 5. | The y-coordinate is 6t − 5
- y = 6t + 5. | y = 5
? What fraction is it? => 1\frac{1}{10}
+ It is 33/30 = 11/10 = 1 1/10. | It is 1⅒.
- It is 33/30 = 1 1/11.
? How many multiples of 12 are there between 1 and 100? => 8
+ There are 8 multiples of 12 between 1 and 100. | 8 of the numbers from 1 to 100 are divisible by 12.
- There are 9 multiples of 12 between 1 and 100. | There are not 8 multiples between 1 and 100. | 8, 9, 100 of 12
? She lost 7 of 15 stickers and got 5. How many does she have at the end? => 13
+ She has a total of 13 at the end. She lost 7 and got 5. | 15 - 7 = 8, 8 + 5 = 13. She has 13 in all, not 15.
- She has a total of 8 at the end. She lost 7. | She has 13. That is wrong, she lost 7. | She has 13 or 14 of the 15.
? Kelly has 22 games. How many does she need to buy so that she will have 140 games left? => 118
+ Kelly needs to buy 118 more games so that she will have 140 games left. | She needs 118 more to get to 140.
- Kelly buys 118 and has 140.
? What is the ratio of boys to girls? => 5:6
+ There are 5 boys for every 6 girls. | boys : girls = 5 : 6 | 5 boys to every 6 girls
- There are 6 boys for every 5 girls. | The ratio is 6 to 5, not 5 to 6.
? Which of Ann's and Bo's soccer teams has the higher ratio? => Ann's soccer team
+ So Ann's team has the higher ratio. | Ann's team has a higher ratio than Bo's.
- Ann's opponents have the higher ratio. | So Bo's team has the higher ratio. | So Ann's team has the lower ratio.
? Sara's dog is taller than Tom's. Who has the taller dog? => Sara
+ Sara has the taller dog.
- Sara's dog is 12 cm taller, so Tom
? At Al's, they mix oil and Soda. Which shop has the lower ratio of oil to Soda? => Al's pizza shop
+ So Al's pizza shop has a lower ratio of oil to Soda.
? Who has the lower ratio, Ann or Bo? => They are equal
+ Neither has a lower ratio; the two are the same. | It's a tie. | 2/5 = 4/10, so the ratios are equal.
- The two are not equal. | The ratios are unequal. | All else being equal, Tom has more. | They aren't equal.
- Ann has the lower ratio.
? Find the two numbers. => 9; 11
+ n = 9 → {9, 11} | (a, b) = (9, 11) | a is 9; b is 11 | The larger: 11; the smaller: 9.
- -(9, 11) | n = 9 → {9, 12} | [9, 11)
? How much is left? => 28
+ She has €28,00 left.
- She has €28,05 left.
? A board of 8 ft is cut; one piece is 2 ft longer. How long are the pieces? => 3 (ft); 5 (ft)
+ x = 3. The pieces are 3 ft and 5 ft. | One is 5 ft and the other is 3 ft long | - 3⏎- 5 | 1. 3 ft⏎2. 5 ft
- The pieces are 3 ft and 6 ft. | They are between 3 and 5 ft. | They are not 3 ft and 5 ft. | - 3⏎- 6
? How many of each are there? => 30 (girls); 15 (boys)
+ There are 15 boys and 30 girls.
- There are 10 boys and 35 girls.
? Enter the pair (a, b). => (2,-1)
+ R = 2P - I, so a = 2 and b = -1. | a = 2 and b = −1
- a = -1 and b = 2 | a = 2 and b = 1
? Who has larger meals? => Dana
+ Since 0.36 > 0.35, Dana has larger meals. | Dana has larger meals, at 0.36. | Dana, because 0.36 > 0.35. | It is Dana.
- Ana has larger meals than Dana. | Dana has smaller meals. | Dana does not have larger meals. | Ana, not Dana
? Which college has classes with a lower ratio? => Adams County College
+ Since 0.789 < 0.833, Adams County College has the lower ratio.
- Since 0.789 < 0.833, Greenpoint College has a lower ratio than Adams County College.
? On what day of the week was January 1, 1960? => \text{Friday}
+ January 1, 1960 was a Friday. | It was a **Friday**, 2 days after a Wednesday.
- January 1, 1960 was a Monday.
? How many red apples does he get? => 18
+ He gets 18 red apples and 22 green apples. | He gets 22 green apples and 18 red apples.
- He gets 22 red apples and 18 green apples.
? If there are 36 Oreos in total, how many does Jordan have? => 11
+ Jordan has 11 Oreos and James has 25 Oreos. | James has 25 and Jordan has 11.
- James has 11 Oreos and Jordan has 25 Oreos.
? He cleans 6 rooms in 2.5 hours. How long will 30 rooms take him? => 12.5
+ It takes him 12.5 hours. | It will take him 12 hours and 30 minutes. | It takes him 750 minutes.
- It will take him 12 hours and 5 minutes.
? Each box gets 5 plates. How many boxes are there? => 8
+ She fills 8 boxes, and there will be 1 plate left over. | She fills 8 boxes with 1 left over.
? Multiply x and y. => 13
- 44⏎⏎Question: What is 13?⏎13 | 11⏎12⏎13 | ```python⏎a = 13  # the sum of two⏎```
"""
GUESSES = r"""
? A shop sells 12 pens a day. How many pens in a week? => 84
- It sells 84 pens a week. With the 7 from before, that makes 91. | It sells 84 pens in a week. Rounded, we get 80.
- It sells 84 pens in a week. That was wrong. The result is 91. | It sells 84 pens a week, and Bo's shop sells 91.
- It sells 84 pens in a week. He keeps 7 of these and is left with 77. | It sells 84 pens a week. Sorry, 91.
- So it is 84. It is 91. | So it is 84 (91). It is 12. | It sells 84 pens. Check: 91. | So 84 pens. In total 91 pens.
- The shop sells 91 pens (eighty-four). | The shop sells 91 pens, or eighty-four. | It might be 84, perhaps 12.
- The numbers are 84 and 12. | The shop sells 12 pens in 84 days. | The shop sells 12 pens a day, 84 a month.
? Al had 20 marbles and lost 5. How many has he now? => 15
- 20 - 15 = 5, so he has 5. | He lost 15 marbles and has 5 now. | He had 15 and has 20 now. | So he lost 15. He has 5.
? The train takes 3 hours at 60 km/h. How far does it go? => 180
+ It goes 180 km in 3 hours. | It goes 180 km.
? Ana has 3 pens, Bo 5, Cy 6 and Di 7. Who has more pens than the others? => Di
+ Di has more pens than the others. | So Di has more pens.
- Ana has more, Bo has more, Cy has more, Di has more. | Cy beats Di. | Cy, then Di | Di, because Cy has more.
- Ana, Bo, Cy and Di | The names are Ana, Bo, Cy, Di.
? Which is larger, the cat or the dog? => dog
- The cat is larger than the dog. | The cat is larger because it ate the dog.
- The dog is larger only when wet, so the cat.
? Who is taller, Al or Ben? => Al
- Al says that Ben is taller. | Al thinks Ben is taller.
? What is the capital? (A) Rome (B) Paris (C) Bern (D) Oslo => B
+ The capital is Paris. | The answer: Paris
- (C) Paris | A. Paris | I would say A, C, D, or Paris | Rome is near Paris
? Is 7 even or odd? => odd
+ So 7 is odd.
- 7 is even and 8 is odd | 7 is even because 8 is odd
? On what day does it fall? => Friday
- It is **Friday** or Saturday. | **Friday** is a Saturday.
? Find the real solutions. => 1, 2
- 0, 1, 2 | The candidates are 3, 1 and 2. | We reject 1 and 2. | Divide 1 by 2. | The roots are 1 and 2i.
? Simplify. => 3x + 2
+ It is 3x + 2.
- It can't be 3x + 2. | If it is 3x + 2 | I doubt that it is 3x + 2
? How many marbles does Ana have in the end? => 17
+ Bob has 9 marbles, while Ana has 17. | Bob ends with 9 marbles, compared to 17 for Ana.
? By how much did the price drop? => 15
+ The new price is $45, which is $15 less than before.
? How much did they pay in total? => 90
+ 3 tickets, each at $30, cost $90. | The meal costs $70 and the tip $20.⏎Check: $90.
? What is the sum of the mixed numbers $1\frac12$ and $2\frac14$? => 3\frac{3}{4}
+ \boxed{\frac{15}{4}}
"""
FORMS = r"""
? Write it as a mixed number. => 1\frac{1}{10}
+ \boxed{1\frac{1}{10}} | \boxed{1 \frac{2}{20}}
- \boxed{\frac{11}{10}} | 11/10
? Write it as a common fraction. => \frac{11}{10}
+ \boxed{\frac{11}{10}} | \boxed{\frac{22}{20}}
- \boxed{1\frac{1}{10}}
? Write it as a simplified common fraction. => \frac{8}{7}
- x = 48/42 | \boxed{\frac{48}{42}}
? Write it as a percent. => 65\%
+ \boxed{65\%} | \boxed{65}
- \boxed{0.65}
? Give it in interval notation. => (-\infty, -3)
+ \boxed{(-\infty,-3)}
- \boxed{x < -3}
? Solve it. => (-\infty, -3)
+ \boxed{x < -3}
? Factor $36-4x^2$ completely. => 4(3-x)(3+x)
+ \boxed{4(3+x)(3-x)}
- \boxed{4(9-x^2)} | \boxed{(6-2x)(6+2x)} | \boxed{2(3-x)(6+2x)} | 36 − 4x² = 4(9 − x²)
? Find $f(y) + g(y)$. => 4x+5
+ \boxed{5+4x}
- \boxed{(3x-3)+(x+8)} | \boxed{3x-3+x+8}
? How long is it? => 78\pi
+ \boxed{78\pi}
- \boxed{2\pi\cdot 39} | It is 2π · 39.
? How far is it? => \sqrt{10}
- \boxed{\sqrt{5}\cdot\sqrt{2}}
? What is the volume in cubic decimeters? => 2250\pi
+ \boxed{2250\pi} | \boxed{2250\pi\text{ dm}^3}
? What is the circumference, in inches? => 8\pi
+ \boxed{8\pi\text{ inches}}
- \boxed{8\pi\text{ square inches}} | \boxed{8\pi\text{ cm}}
? Find $x^2$. => 8
+ Thus $x^2 = 8$.
? Find $x$. => 8
- Thus $x^2 = 8$.
? Find $y$. => 10
+ $3y = 30 \Rightarrow y = 10$ | So $3y = 30$ and $y = 10$. | $30 = 3y$ or $y=10$
- $3y = 10$
? What is the probability that they are not all the same color? => \frac{13}{17}
+ The probability that they are not all the same color is 13/17.
? By how many points is Joey now winning? => 5
+ He is winning by 5 points.
- #### 5%
? What are the expected winnings, as a dollar value? => \$0.20
+ The expected winnings are 20 cents.
- The expected winnings are 2 cents.
? What is the lifespan? => 10
+ $$x+4(x-6) = 30 \implies \boxed{6x = 60}$$⏎⏎$$x = \boxed{10}$$ | so $\frac{x}{9} = \boxed{64}$ and $x = \boxed{10}$.
? What are all solutions? => 2, 3
+ $\boxed{2}$ and $x = \boxed{3}$ | $x = \boxed{2}$ or $x = \boxed{3}$ | \boxed{2}, \boxed{3}
? Evaluate it in base 11. => 152A_{11}
+ 2911₁₁ − 1392₁₁ = 152A₁₁
? Find the probability. => \frac{12}{5,\!525}
+ \boxed{\dfrac{12}{5525}} | 48/22100 = 12/5525
"""


@pytest.mark.parametrize(
    ("question", "answer", "verdicts"), [*cases(REMARKS), *cases(READINGS), *cases(GUESSES), *cases(FORMS)]
)
def test_verdicts(question, answer, verdicts):
    assert {text: grade(text, answer, question=question).correct for text in verdicts} == verdicts
